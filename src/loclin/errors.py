"""The one exception that a user is meant to read."""


class LoclinError(ValueError):
    """Bad input or a run that cannot go on: one line saying what was expected, what was found and
    what to do.

    The command line prints the message alone and ends with exit code 2; nothing already written is
    touched.
    """
