"""Linearity: over which steps is the loss straight, along which directions, and does its curvature
say where that ends? The radius is that of one direction of a user's choice.
"""
