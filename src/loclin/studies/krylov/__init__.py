"""Krylov: does the way back lie in the space that gradient and Hessian make, and until when?"""
