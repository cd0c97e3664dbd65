"""How many models the runs of an entry share."""

BUILT_IN = ("sequences", "sequences-small", "statements", "statements-small")


def models_of(settings: dict) -> int:
    """Run r is on the model r mod that; runs on a model that was brought are all on one."""
    if settings["model"] not in BUILT_IN:
        return 1
    return min(settings["models_per_claim"], settings["seeds"])
