"""Trajectory: what the updates of a run that was trained elsewhere say about it, from its
checkpoints or a callback.
"""
