"""The estimates of the claims about random search, from what every candidate gained.

Formulas are written here again from measures §10: m_N by quadrature, the law, its domain, the mean
of a best of N over all draws, and the control variate.
"""

from functools import cache
from math import comb

import numpy as np
from scipy import integrate, stats

from tests.recompute import interval

BUILT_IN = ("sequences", "statements", "sequences-small", "statements-small")
SUBSPACES = (
    "gradients at θ_D", "lesser gradients at θ_D", "first updates", "static plane", "Krylov",
    "norm-matched noise", "random",
)  # fmt: skip
Arrays = dict[str, np.ndarray]


def estimates(settings: dict, arrays: Arrays) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(value, low, high) of every claim by its id and the end of its setting."""
    models = min(settings["models_per_claim"], settings["seeds"])
    models = models if settings["model"] in BUILT_IN else 1
    runs, n, k = range(settings["seeds"]), settings["n"], settings["votes"][-1]

    def over(values: list[float], scale: str = "plain") -> tuple[float, float, float]:
        return interval(np.array(values), models, scale)

    def law(run: int, point: str, space: str = "all") -> np.ndarray:
        return arrays[f"law/{point}/{space}/{run}"]

    def beyond_slope(run: int, point: str) -> float:
        seen = law(run, point)
        reference = best_sigma(seen, max(settings["best_of"]))
        inside = [s for s in settings["sizes"] if s * reference <= domain(seen, n) * (1 + 1e-9)]
        off = []
        for size in inside:
            sigma = size * reference
            found = gain(arrays[f"gains/{point}/gaussian/all/{size}/{run}"], n, sigma * seen[0])
            slope = sigma * seen[0] * moments(n)[0]
            off.append((abs(found - expected(seen, n, sigma)) - abs(found - slope)) / slope)
        return float(np.mean(off))

    def in_spaces(run: int, where: str) -> tuple[np.ndarray, ...]:
        """The law's gain at the best σ, the density, and the observed gain, over subspaces."""
        radius = settings["size"] * min(
            best_sigma(law(run, "damaged", s), n) * np.sqrt(dimensions(s, run)) for s in present
        )
        numbers = []
        for space in present:
            seen, k = law(run, "damaged", space), dimensions(space, run)
            sigma = best_sigma(seen, n) if where == "own best σ" else radius / np.sqrt(k)
            found = arrays[f"gains/damaged/gaussian/{space}/{where}/{run}"]
            observed = gain(found, n, sigma * seen[0])
            numbers.append((expected(seen, n, sigma), seen[0] ** 2 / k, observed))
        return tuple(np.array(numbers).T)

    def dimensions(space: str, run: int) -> float:
        return float(law(run, "damaged", space)[5])

    present = [s for s in SUBSPACES if f"law/damaged/{s}/0" in arrays]

    def along(run: int) -> tuple[np.ndarray, ...]:
        """cos(δ, −g), the share of δ in the plane, and the gain in loss, of every candidate."""
        energy, inner, inside = arrays[f"directions/damaged/{run}"][:3]
        length = np.sqrt(arrays[f"gradients/damaged/{run}"][1, 1])
        gains = arrays[f"gains/damaged/gaussian/all/1.0/{run}"][0]
        return -inner / np.sqrt(energy) / length, inside / energy, gains

    def right(run: int, arm: str, votes: int) -> float:
        return float(np.mean(majority(arrays[f"answers/{arm}/{run}"][:votes]) == 0))

    best = [in_spaces(run, "own best σ") for run in runs]
    equal = [in_spaces(run, "equal radius") for run in runs]
    vote = [right(run, "vote of the best", k) - right(run, "vote of the best", 1) for run in runs]
    return {
        **{
            ("best-of-n-law", end): over([beyond_slope(run, point) for run in runs])
            for point, end in (("damaged", "θ_D"), ("halfway", "θ_H"))
        },
        ("signal-density", "θ_D"): over([rank(x, y) for x, _, y in best], "fisher"),
        ("signal-density", "equal radius"): over([rank(x, y) for _, x, y in equal], "fisher"),
        ("alignment-predicts-gain", "θ_D"): over(
            [pearson(x, y) for x, _, y in map(along, runs)], "fisher"
        ),
        ("plane-overlap-does-not", "θ_D"): over(
            [pearson(x, y) for _, x, y in map(along, runs)], "fisher"
        ),
        ("ensembles-help", "θ_H"): over(vote),
    }


@cache
def moments(n: int) -> tuple[float, float]:
    """E[M] and E[M²] of the maximum of n standard normals."""
    values = [
        integrate.quad(
            lambda x, p=p: x**p * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1),
            -12,
            12,
            epsabs=1e-13,
            limit=200,
        )[0]
        for p in (1, 2)
    ]
    return values[0], values[1]


def expected(law: np.ndarray, n: int, sigma: float) -> float:
    """σ‖g‖m_N − (σ²/2)[tr H + (E[M²]−1) ĝᵀHĝ]."""
    (mean, square), (slope, trace, along) = moments(n), law[:3]
    return sigma * slope * mean - sigma**2 / 2 * (trace + (square - 1) * along)


def best_sigma(law: np.ndarray, n: int) -> float:
    """σ*, or the edge √2‖g‖/‖H‖_F where that is smaller or there is no σ*."""
    (mean, square), (slope, trace, along, norm) = moments(n), law[:4]
    edge, bent = np.sqrt(2) * slope / norm, trace + (square - 1) * along
    return float(min(slope * mean / bent, edge) if bent > 0 else edge)


def domain(law: np.ndarray, n: int) -> float:
    """σ* again, or a quarter of the edge."""
    return float(min(best_sigma(law, n), np.sqrt(2) * law[0] / law[3] / 4))


def gain(scored: np.ndarray, n: int, slope: float) -> float:
    """Best of n, mean over all draws, less σ‖g‖(b − m_n), b the same of −ĝᵀz: the third row."""
    return best_of(scored[0], n) - slope * (best_of(scored[2], n) - moments(n)[0])


def best_of(values: np.ndarray, n: int) -> float:
    """Mean over all draws of n of the largest; what is not finite is drawn, never selected."""
    total, finite = len(values), np.sort(values[np.isfinite(values)])
    lost = total - len(finite)
    weights = [comb(lost + i, n - 1) / comb(total, n) for i in range(len(finite))]
    none = comb(lost, n) / comb(total, n)
    return float(np.dot(weights, finite) / (1 - none))


def majority(answers: np.ndarray) -> np.ndarray:
    """The most frequent answer to each example; ties go to the better-ranked; −1 is none."""
    found = []
    for column in answers.T:
        ballots = [a for a in column.tolist() if a >= 0]
        first = {a: (ballots.count(a), -ballots.index(a)) for a in ballots}
        found.append(max(first, key=first.__getitem__, default=-1))
    return np.array(found)


def rank(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ, not beyond half a swap of two neighbours."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    end = 1 - 6 / (len(x) * (len(x) ** 2 - 1))
    return float(np.clip(stats.spearmanr(x, y).statistic, -end, end))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """r over the candidates where both are finite."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
