"""The demo over several seeds: accuracy on unseen cases, and run time.

    OMP_NUM_THREADS=1 python experiments/demo_seeds.py --out OUT
    python experiments/demo_seeds.py --demo exams --seeds 0 1 2 --out OUT

Each seed has a separate cohort (for slides, with separate hospitals) and a separate training. No setting was
tuned on these seeds. Prints a row for each seed and compares the means with limits, and writes
`demo_seeds.json`. A seed whose result is already stored is not run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any


@dataclass(frozen=True)
class Bar:
    """Limit of a figure, for the mean over the seeds or for every seed."""

    limit: float
    at_least: bool
    of_mean: bool = True

    def holds(self, values: list[float]) -> bool:
        if self.of_mean:
            return mean(values) >= self.limit if self.at_least else mean(values) <= self.limit
        return min(values) >= self.limit if self.at_least else max(values) <= self.limit


BARS: dict[str, dict[str, Bar]] = {
    "slides": {
        "froc": Bar(0.70, at_least=True),
        "slide AUC": Bar(0.90, at_least=True),
        "colour froc": Bar(0.40, at_least=False),
        "seconds": Bar(360.0, at_least=False, of_mean=False),
        "training seconds": Bar(180.0, at_least=False, of_mean=False),
    },
    "exams": {
        "malignant AUC": Bar(0.80, at_least=True),
        "benign AUC": Bar(0.80, at_least=True),
        "seconds": Bar(300.0, at_least=False, of_mean=False),
        "CPU seconds": Bar(510.0, at_least=False, of_mean=False),
    },
}
"""The times apply to two idle cores; 510 CPU seconds are 300 s of two cores at 85 % load."""


def answer_of(demo: str, seed: int, folder: Path, extra_arguments: list[str]) -> dict[str, Any]:
    """The output of `lobule demo --json` for a seed, and the CPU time of all its processes."""
    stored = folder / "answer.json"
    if not stored.exists():
        program = [
            sys.executable, "-m", "lobule", "demo", demo, "--seed", str(seed), "--out", str(folder), "--json",
        ]  # fmt: skip
        cpu_seconds_before, start = _child_cpu_seconds(), time.perf_counter()
        finished = subprocess.run([*program, *extra_arguments], check=True, capture_output=True, text=True)
        answer = json.loads(finished.stdout)
        answer["cpu_seconds"] = _child_cpu_seconds() - cpu_seconds_before
        answer["wall_seconds"] = time.perf_counter() - start
        folder.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(answer, indent=1))
    loaded: dict[str, Any] = json.loads(stored.read_text())
    return loaded


def _child_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def slide_figures(answer: Mapping[str, Any]) -> dict[str, float]:
    net, colour = answer["evaluation"]["scannet"], answer["evaluation"]["colour"]
    seconds = answer["seconds"]
    return {
        "froc": net["froc"]["value"],
        "slide AUC": net["slide_auc"]["value"],
        "colour froc": colour["froc"]["value"],
        "colour slide AUC": colour["slide_auc"]["value"],
        "lesions": net["lesions"],
        "seconds": sum(seconds.values()),
        "training seconds": seconds["Training the net"],
    }


def exam_figures(answer: Mapping[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for grade, area in answer["auc"].items():
        lesions = answer["lesions"][grade]
        figures |= {
            f"{grade} AUC": area["value"],
            f"{grade} AUC low": area["low"],
            f"{grade} AUC high": area["high"],
            f"{grade} lesions pointed at": lesions["share"],
            f"{grade} by chance": lesions["chance"],
        }
    return figures | {"seconds": answer["wall_seconds"], "CPU seconds": answer["cpu_seconds"]}


FIGURES = {"slides": slide_figures, "exams": exam_figures}


def _line(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--demo", choices=list(FIGURES), default="slides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("demo-seeds"))
    parser.add_argument("demo_arguments", nargs="*", help="further arguments of `lobule demo`, after --")
    options = parser.parse_args()
    rows = {}
    for seed in options.seeds:
        answer = answer_of(options.demo, seed, options.out / f"seed-{seed}", options.demo_arguments)
        rows[seed] = FIGURES[options.demo](answer)
        print(f"seed {seed}: {_line(rows[seed])}", flush=True)
    means = {name: mean(row[name] for row in rows.values()) for name in next(iter(rows.values()))}
    print(f"mean:   {_line(means)}")
    bars = BARS[options.demo]
    holds = {name: bar.holds([row[name] for row in rows.values()]) for name, bar in bars.items()}
    print("bars:   " + ", ".join(f"{name} {'holds' if met else 'missed'}" for name, met in holds.items()))
    summary = {
        "seeds": rows,
        "mean": means,
        "bars": {name: bar.limit for name, bar in bars.items()},
        "holds": holds,
    }
    (options.out / "demo_seeds.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
