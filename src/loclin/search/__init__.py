"""Random search around a model's weights: candidates by seed, their scores, and what they are worth
together.
"""
