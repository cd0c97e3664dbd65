"""Linear algebra on vectors of either space, weights or activations. It knows nothing of models or
studies.
"""
