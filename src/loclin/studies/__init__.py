"""One folder per question: a configuration, one independent run, and the rules that decide its
claims.

A study is a module with `Config` (its settings and profiles), `run_one(config, run, progress) ->
Part` and `decide(config, rows) -> claims`; `runner.py` does the rest. `STUDIES` names them in the
order of a report.
"""

STUDIES: tuple[str, ...] = (
    "recovery",
    "spectrum",
    "linearity",
    "krylov",
    "search",
    "steering",
    "schedules",
)
#: Run by the same runner, on a user's own tasks, by a command of their own; they decide no claims.
OWN: tuple[str, ...] = ("pilot",)
