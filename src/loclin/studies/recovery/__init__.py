"""Recovery: does a basis fixed beforehand, or the first updates, span the way back to a destroyed
task?
"""
