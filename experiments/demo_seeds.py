"""The demo over three seeds: lesions and slides found at unseen hospitals, by the net and by colour alone.

    OMP_NUM_THREADS=1 python experiments/demo_seeds.py --out OUT

Every seed is a cohort of its own, with hospitals of its own, and a training of its own; nothing was chosen on
them. Prints one row a seed and the means against their bars, and writes `demo_seeds.json`. A seed whose
folder holds its answer is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

BARS = {"froc": 0.70, "slide AUC": 0.90, "colour froc": 0.40}
"""At least, at least, at most."""
LIMITS = {"seconds": 360.0, "training seconds": 180.0}
"""At most, on two cores with nothing else running."""


def answer_of(seed: int, folder: Path, more: list[str]) -> dict[str, Any]:
    """What `lobule demo --json` says of a seed."""
    kept = folder / "answer.json"
    if not kept.exists():
        program = [
            sys.executable,
            "-m",
            "lobule",
            "demo",
            "--seed",
            str(seed),
            "--out",
            str(folder),
            "--json",
        ]
        done = subprocess.run([*program, *more], check=True, capture_output=True, text=True)
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def figures_of(answer: dict[str, Any]) -> dict[str, float]:
    judged, seconds = answer["evaluation"], answer["seconds"]
    own, colour = judged["scannet"], judged["colour"]
    return {
        "froc": own["froc"]["value"],
        "slide AUC": own["slide_auc"]["value"],
        "colour froc": colour["froc"]["value"],
        "colour slide AUC": colour["slide_auc"]["value"],
        "lesions": own["lesions"],
        "seconds": sum(seconds.values()),
        "training seconds": seconds["Training the net"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("demo-seeds"))
    parser.add_argument("more", nargs="*", help="further arguments of `lobule demo`, after --")
    given = parser.parse_args()
    rows = {}
    for seed in given.seeds:
        rows[seed] = figures_of(answer_of(seed, given.out / f"seed-{seed}", given.more))
        print(
            f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in rows[seed].items()),
            flush=True,
        )
    means = {name: mean(row[name] for row in rows.values()) for name in next(iter(rows.values()))}
    print("mean:   " + ", ".join(f"{name} {value:.4g}" for name, value in means.items()))
    holds = {
        "froc": means["froc"] >= BARS["froc"],
        "slide AUC": means["slide AUC"] >= BARS["slide AUC"],
        "colour froc": means["colour froc"] <= BARS["colour froc"],
        **{name: max(row[name] for row in rows.values()) <= limit for name, limit in LIMITS.items()},
    }
    print("bars:   " + ", ".join(f"{name} {'holds' if held else 'missed'}" for name, held in holds.items()))
    facts = {"seeds": rows, "mean": means, "bars": {**BARS, **LIMITS}, "holds": holds}
    (given.out / "demo_seeds.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
