"""The one exception that a user is meant to read."""


class LoclinError(ValueError):
    """Bad input or a run that cannot go on: one line saying what was expected, what was found and
    what to do.

    The command line prints the message alone and ends with exit code 2; nothing already written is
    touched.

    >>> import loclin
    >>> try:
    ...     loclin.over_runs([])
    ... except loclin.LoclinError as error:
    ...     print(error)
    expected a value from at least one run, found none: run more seeds
    """


def disk_error(error: OSError) -> LoclinError:
    """A full disk, or a folder that cannot be written, wherever it was met."""
    where = f" at {error.filename}" if error.filename else ""
    return LoclinError(
        f"expected to read and write files, found {error.strerror or error}{where}: make room or "
        "choose another --out or $LOCLIN_CACHE; finished runs are kept"
    )
