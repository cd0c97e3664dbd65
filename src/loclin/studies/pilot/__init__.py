"""Which schedule for a user's own tasks: a short training by each, from the model as it is (`loclin
schedules`).
"""
