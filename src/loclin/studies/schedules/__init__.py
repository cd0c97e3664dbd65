"""Is training tasks one after another brittle, which schedule is better, and what mends it?"""
