"""The demo over several seeds: accuracy on unseen cases, and run time.

    OMP_NUM_THREADS=1 python experiments/demo_seeds.py --out OUT
    python experiments/demo_seeds.py --demo exams --seeds 0 1 2 --out OUT

Each seed has a separate cohort (for slides, with separate hospitals) and a separate training. No setting was
tuned on these seeds. The script prints a row for each seed and compares the figures with limits, which it
calls bars. It writes everything to `demo_seeds.json`. A seed whose result is already stored is not run again.
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
    """A limit that a figure must meet: the mean over the seeds, or the figure of every seed."""

    limit: float
    at_least: bool
    """Whether the limit is the smallest allowed value; otherwise it is the largest."""
    of_mean: bool = True

    def is_met(self, values: list[float]) -> bool:
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
"""For each demo, the bars of its figures.

The times apply to two idle cores; 510 CPU seconds are 300 s of two cores at 85 % load. "colour froc" is the
FROC of colour alone. It must stay low: a demo that colour solves would show nothing.
"""


def run_demo_unless_stored(demo: str, seed: int, folder: Path, extra_arguments: list[str]) -> dict[str, Any]:
    """Run `lobule demo --json` for a seed, unless `answer.json` in its folder already has the output.

    Returns:
        The output, with the wall time and with the CPU time of all its processes.
    """
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
    """CPU time of all child processes that have ended so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def slide_figures(answer: Mapping[str, Any]) -> dict[str, float]:
    """Select the figures of the demo of slides from its output."""
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
    """Select the figures of the demo of exams from its output."""
    figures: dict[str, float] = {}
    for grade, auc in answer["auc"].items():
        lesions = answer["lesions"][grade]
        figures |= {
            f"{grade} AUC": auc["value"],
            f"{grade} AUC low": auc["low"],
            f"{grade} AUC high": auc["high"],
            f"{grade} lesions pointed at": lesions["share"],
            f"{grade} by chance": lesions["chance"],
        }
    return figures | {"seconds": answer["wall_seconds"], "CPU seconds": answer["cpu_seconds"]}


FIGURES = {"slides": slide_figures, "exams": exam_figures}


def _as_text(figures: Mapping[str, float]) -> str:
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
        answer = run_demo_unless_stored(
            options.demo, seed, options.out / f"seed-{seed}", options.demo_arguments
        )
        rows[seed] = FIGURES[options.demo](answer)
        print(f"seed {seed}: {_as_text(rows[seed])}", flush=True)
    means = {name: mean(row[name] for row in rows.values()) for name in next(iter(rows.values()))}
    print(f"mean:   {_as_text(means)}")
    bars = BARS[options.demo]
    met = {name: bar.is_met([row[name] for row in rows.values()]) for name, bar in bars.items()}
    print("bars:   " + ", ".join(f"{name} {'met' if is_met else 'missed'}" for name, is_met in met.items()))
    summary = {
        "seeds": rows,
        "mean": means,
        "bars": {name: bar.limit for name, bar in bars.items()},
        "holds": met,
    }
    (options.out / "demo_seeds.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
