"""Recovery: do fixed bases, or the first updates, span the way back to a destroyed task?"""
