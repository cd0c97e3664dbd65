"""Radius: the largest step along one direction of a model's weights whose effect on the loss stays
predictable.
"""
