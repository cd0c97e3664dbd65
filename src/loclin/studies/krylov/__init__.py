"""Krylov: does the way back lie in the space that gradient and Hessian at the damaged point make,
and until when?
"""
