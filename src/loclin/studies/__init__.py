"""One folder a study: `settings.py` (what is asked), `measure.py` (one run: rows and arrays),
`claims.py` (the rules), `page.py` (sections made from rows), `names.py` (names of rows and their
labels). `run/runner.py` does the rest.
"""

from loclin.run.runner import Study


def _study(
    summary: str, package: str, settings: str, *, part: str = "", claims: bool = True
) -> Study:
    """A study of a folder; `part` names the files of a second question that lives there."""
    room = f"loclin.studies.{package}"
    return Study(
        summary=summary,
        settings=f"{room}.{part}settings:{settings}",
        measure=f"{room}.{part}measure",
        page=f"{room}.{part}page",
        claims=f"{room}.claims" if claims else None,
    )


#: Every question, by its kind in the record.
KINDS: dict[str, Study] = {
    "recovery": _study(
        "destroy a task, train it back: do fixed bases, or the first updates, span the way?",
        "recovery",
        "RecoverySettings",
    ),
    "spectrum": _study(
        "are task gradients of low rank, do tasks share a space, which weights hold it?",
        "spectrum",
        "SpectrumSettings",
    ),
    "linearity": _study(
        "over which steps is the loss straight, along which directions, and why does it end?",
        "linearity",
        "LinearitySettings",
    ),
    "radius": _study(
        "how large a step along a gradient, a task vector or an adapter stays predictable?",
        "linearity",
        "RadiusSettings",
        part="radius_",
        claims=False,
    ),
    "krylov": _study(
        "does the way back lie in the space that gradient and Hessian make, and until when?",
        "krylov",
        "KrylovSettings",
    ),
    "search": _study(
        "search around your model at random: a forecast, locked splits, ensembles",
        "search",
        "SearchSettings",
        claims=False,
    ),
    "search-claims": _study(
        "does random search gain what its law says, in any space, and what are the best worth?",
        "search",
        "SearchClaimsSettings",
        part="claims_",
    ),
    "steer": _study(
        "a vector that shifts your model's answers: where, how well, at what cost",
        "steering",
        "SteerSettings",
        claims=False,
    ),
    "steering": _study(
        "do labels, one gradient step and random search give one steering vector?",
        "steering",
        "SteeringClaimsSettings",
        part="claims_",
    ),
    "schedules": _study(
        "train several tasks into one model: which schedule, is one after another brittle?",
        "schedules",
        "SchedulesSettings",
    ),
    "trajectory": _study(
        "measure a training run of your own from its checkpoint folders",
        "trajectory",
        "TrajectorySettings",
        claims=False,
    ),
}

#: What each asks, as the title of its part of a page.
TITLES = {kind: f"{study.summary[0].upper()}{study.summary[1:]}" for kind, study in KINDS.items()}

#: The studies of `loclin reproduce`, in the order of a report, and the kind that it runs.
STUDIES: dict[str, str] = {
    "recovery": "recovery",
    "spectrum": "spectrum",
    "linearity": "linearity",
    "krylov": "krylov",
    "search": "search-claims",
    "steering": "steering",
    "schedules": "schedules",
}
