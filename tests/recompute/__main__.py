"""Every estimate of a run folder's claims again, from its arrays alone: nothing of loclin is used.

    python -m tests.recompute RUN_FOLDER

prints every claim with the recorded value and the largest difference of value and limits, and ends
with 1 where one is missing or differs by more than a billionth.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

from safetensors.numpy import load_file

TOLERANCE = 1e-9


def differences(folder: Path) -> dict[tuple[str, str], float]:
    """By claim and setting: the largest difference of value, low and high; infinite where a claim
    was not computed again. Claims that were not run, and limits that are not defined, are left out.
    """
    studies = json.loads((folder / "run.json").read_text(encoding="utf-8"))["studies"]
    claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    found = {}
    for entry, about in studies.items():
        own = [c for c in claims if c["study"] == entry and c["value"] is not None]
        if own:
            again = import_module(f"tests.recompute.{entry.split('-')[0]}").estimates(
                about, load_file(folder / entry / "arrays.safetensors")
            )
            found |= {(c["id"], c["setting"]): _difference(c, again) for c in own}
    return found


def _difference(claim: dict, again: dict[tuple[str, str], tuple[float, float, float]]) -> float:
    recorded = [claim[name] for name in ("value", "low", "high")]
    for (name, setting), values in again.items():
        if name == claim["id"] and claim["setting"].endswith(setting):
            pairs = zip(recorded, values, strict=True)
            return max(abs(a - b) for a, b in pairs if a is not None)
    return float("inf")


if __name__ == "__main__":
    every = differences(Path(sys.argv[1]))
    for (name, setting), difference in every.items():
        print(f"{name:28} {setting:40} {difference:.1e}")
    sys.exit(not every or max(every.values()) > TOLERANCE)
