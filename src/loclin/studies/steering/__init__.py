"""Steering: do labels, one gradient step and random search give the same vector of activations, and
does each of them steer?
"""
