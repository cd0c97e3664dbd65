"""Trajectory: a training run from elsewhere, measured from its checkpoint folders or as it goes."""
