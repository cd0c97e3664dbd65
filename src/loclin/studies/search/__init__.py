"""Search: does random search gain what the Gaussian local-linear law says, and what are its
candidates worth together?
"""
