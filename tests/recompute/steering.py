"""Estimates of the steering study from its arrays: angles of vectors, and slopes of prompts."""

import numpy as np

from tests.recompute import BACK, TO, by_run, interval


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64."""
    x, y = a.astype(float), b.astype(float)
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def estimates(
    settings: dict, arrays: dict[str, np.ndarray]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """By claim and the end of its setting."""
    runs = len(by_run(arrays, "layers"))
    built_in = settings["model"].split("-")[0] in ("sequences", "statements")
    models = min(settings["models_per_claim"], runs) if built_in else 1
    caa, middle = by_run(arrays, "vectors/CAA"), by_run(arrays, "layers")[:, 0]
    found = {}
    for of in ("E1", "E2", "E3"):
        if f"vectors/{of}/0" in arrays:
            every = cosines(by_run(arrays, f"vectors/{of}"), caa)
            at = every[np.arange(runs), middle]
            found["gradient-step-steers", of] = interval(at, models, "fisher")
    every = cosines(by_run(arrays, "vectors/E1"), caa)
    late = BACK["fisher"](TO["fisher"](every[:, every.shape[1] // 2 :]).mean(1))
    found["two-routes-agree", "late blocks"] = interval(late, models, "fisher")
    slopes = {name: by_run(arrays, f"slopes/middle/{name}").mean(1) for name in ("CAA", "search")}
    steered = np.where(slopes["CAA"] > 0, slopes["CAA"], np.nan)
    if not np.isnan(steered).all():
        best = f"{settings['winners']} best of {settings['candidates']}"
        found["search-steers", best] = interval(slopes["search"] / steered, models)
    return found
