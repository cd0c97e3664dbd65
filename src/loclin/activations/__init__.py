"""Outputs of a transformer's blocks: find the blocks, capture what they give, add vectors to it."""
