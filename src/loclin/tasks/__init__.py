"""What a model is asked: examples and their splits, batches and scores, and the built-in
generators.
"""
