"""When a refined scan has its answer: its slide score over time, against a full scan at the fine stride.

Each slide is scanned completely at the stride `refine_stride` of the bundle, and with `--refine`, which first
computes a coarse map of all tissue and then refines promising cells, the most promising first. A scan with
`--refine` that is not measured precedes both, so that both find the slide and the networks in memory. The
times at which fields arrive are recorded; afterwards the slide score is recomputed from the fields that had
arrived by each time. The answer is there from the first time on from which the score stays within .01 of that
of the full scan. The table lists, for each slide, the seconds until the coarse map is complete and until the
answer is there, and both as shares of the seconds of the full scan. All seconds count from the opening of the
slide, those of a whole scan to its written result. Finding the tissue counts; hashing the slide and loading
the model do not.

    python experiments/early_answers.py OUT [BUNDLE COHORT ...] [--phantoms BUNDLE] [--kit DIR]

`--phantoms` measures generated slides, with lesions of several sizes and without, and a bundle at 1 µm/px,
such as that of `experiments/comparison_phantoms.py`. `--kit` measures the two real slides of the reference
kit with the bundles of `experiments/scannet_kit.py DIR --attempt tiny-2x-short`, each trained on the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from scannet_kit import SLIDES, enlarged_case

import lobule
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort, as_cohort
from lobule.methods import load
from lobule.methods.scannet.predictor import DensePredictor, highest_cell
from lobule.phantoms.noise import mixed
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import write_slide
from lobule.results.folder import CaseFolder, open_results
from lobule.results.maps import MapReader
from lobule.scanning.cases import CaseRunner
from lobule.scanning.contract import ScanOptions
from lobule.scanning.stores import MapSink
from lobule.stitch import State, overlay

TOLERANCE = 0.01
SEED, MPP = 31, 1.0
PHANTOMS = {
    "normal-16k": SlidePhantom(0, 16384, 16384, MPP, mimics=8),
    "normal-12k": SlidePhantom(1, 12288, 12288, MPP, mimics=8),
    "itc-12k": SlidePhantom(2, 12288, 12288, MPP, itc=1, mimics=8),
    "micro-12k": SlidePhantom(3, 12288, 12288, MPP, micro=1, mimics=8),
    "macro-12k": SlidePhantom(4, 12288, 12288, MPP, macro=1, mimics=8),
    "mixed-16k": SlidePhantom(5, 16384, 16384, MPP, macro=1, micro=2, itc=3, mimics=8),
    "plain-normal-10k": SlidePhantom(6, 10240, 10240, MPP, tissue=0.4),
    "plain-itc-10k": SlidePhantom(7, 10240, 10240, MPP, tissue=0.4, itc=3),
    "plain-breast-10k": SlidePhantom(8, 10240, 10240, MPP, tissue=0.4, organ="breast"),
}
"""Generated slides by name; their hospitals are unseen ones of `experiments/comparison_phantoms.py`."""


@dataclass
class Arrivals:
    """When a scan began, when it ended, and when each field of its maps arrived."""

    began: float = 0.0
    ended: float = 0.0
    """Seconds from the beginning to the written result."""
    fields: list[tuple[float, Path, tuple[int, int]]] = field(default_factory=list)
    """Seconds since the beginning, the folder of the map, and the first cell of the field."""


@contextmanager
def recorded() -> Iterator[Arrivals]:
    """Record the times of the scan of one case."""
    arrivals = Arrivals()
    scan_images, deliver = CaseRunner._scan_images, MapSink.deliver

    def timed_scan(self: CaseRunner, *arguments: Any) -> str:
        arrivals.began = time.perf_counter()
        status = scan_images(self, *arguments)
        arrivals.ended = time.perf_counter() - arrivals.began
        return status

    def timed_delivery(self: MapSink, row: int, outputs: Any) -> None:
        deliver(self, row, outputs)
        cells = self._spec.grid.cells
        first_cell = tuple(int(index) * cells for index in self._field_indices[row])
        arrivals.fields.append((time.perf_counter() - arrivals.began, self._path, first_cell))  # type: ignore[arg-type]

    with (
        patch.object(CaseRunner, "_scan_images", timed_scan),
        patch.object(MapSink, "deliver", timed_delivery),
    ):
        yield arrivals


@dataclass(frozen=True)
class Answer:
    """The times of one slide, in seconds, and its scores."""

    case: str
    coarse_s: float
    answer_s: float
    refined_s: float
    full_s: float
    coarse_score: float
    refined_score: float
    full_score: float

    def line(self) -> str:
        times = {"coarse map": self.coarse_s, "answer": self.answer_s, "refined": self.refined_s}
        shares = [f"{name} {value:.2f} s ({value / self.full_s:.2f})" for name, value in times.items()]
        scores = f"{self.coarse_score:.3f}, {self.refined_score:.3f}, {self.full_score:.3f}"
        return f"{self.case:>12}  {', '.join(shares)}, full {self.full_s:.2f} s; scores {scores}"


def scores_over_time(
    arrivals: Arrivals, coarse: MapReader, fine: MapReader, mean_cells: int
) -> list[tuple[float, float]]:
    """(seconds, slide score) when the coarse map is complete and after each field of the fine map."""
    rough, (scores, states) = coarse.read(), fine.read()
    factor = round(coarse.info.l0_stride[0] / fine.info.l0_stride[0])
    arrived = np.full_like(states, State.PENDING)

    def slide_score() -> float:
        values, shown = overlay(rough, (scores, arrived), factor)
        return highest_cell(np.where(shown == State.SCORED, values[0], np.float32(0)), mean_cells)

    complete = max(seconds for seconds, path, _ in arrivals.fields if path == coarse.path)
    history = [(complete, slide_score())]
    height, width = fine.info.chunk[0], fine.info.chunk[0]
    for seconds, path, (row, column) in arrivals.fields:
        if path == fine.path:
            block = np.s_[row : row + height, column : column + width]
            arrived[block] = states[block]
            history.append((seconds, slide_score()))
    return history


def seconds_to_answer(history: list[tuple[float, float]], full_score: float) -> float:
    """The first time from which on the score stays close to that of the full scan; infinite without one."""
    answer = float("inf")
    for seconds, score in reversed(history):
        if abs(score - full_score) > TOLERANCE:
            break
        answer = seconds
    return answer


def measure(bundle: Path, case: Case, out: Path, settings: dict[str, Any]) -> Answer:
    predictor = load(read_bundle(bundle))
    assert isinstance(predictor, DensePredictor)
    config = predictor.config
    seconds, folders, histories = {}, {}, Arrivals()
    full: dict[str, Any] = {"stride": config.refine_stride}
    refined: dict[str, Any] = {"refine": True}
    for name, options in (("not measured", refined), ("full", full), ("refined", refined)):
        with recorded() as arrivals:
            lobule.scan(
                bundle, Cohort((case,)), out / name, settings=settings, fresh=True, runtime="torch", **options
            )
        folders[name] = open_results(out / name).case_folder(case.id)
        seconds[name] = arrivals.ended
        histories = arrivals
    scores = {name: slide_score_of(folders[name]) for name in ("full", "refined")}
    maps = sorted(folders["refined"].maps.values(), key=lambda reader: -reader.info.l0_stride[0])
    coarse, fine = maps[0], maps[-1]
    history = scores_over_time(histories, coarse, fine, config.mean_cells)
    if predictor.model.uses_forest(ScanOptions(refine=True, settings=settings)):
        history = [(history[0][0], scores["refined"])]  # The forest's score depends on the coarse map only.
    return Answer(
        case.id, history[0][0], seconds_to_answer(history, scores["full"]), seconds["refined"],
        seconds["full"], history[0][1], scores["refined"], scores["full"],
    )  # fmt: skip


def phantoms_in(folder: Path) -> Iterator[Case]:
    """The generated slides. Each is written only once."""
    for number, (name, phantom) in enumerate(PHANTOMS.items()):
        path = folder / f"{name}.tif"
        if not path.exists():
            site = f"hospital-{'IJKLM'[number % 5]}-24"
            write_slide(replace(phantom, seed=mixed(SEED, number, 0x5EED), site=site), path)
        yield Case(name, name, "slide", str(path), mpp=MPP)


def kit_in(folder: Path) -> Iterator[tuple[Path, Case]]:
    """Each enlarged slide of the kit with the bundle that was trained on the other one."""
    kit = Path(os.environ["LOBULE_REFERENCE"]) / "kit"
    for trained, scanned in (SLIDES, SLIDES[::-1]):
        yield folder / f"tiny-2x-short-{trained}-0", enlarged_case(kit, scanned, 2, folder / "slides")


def slide_score_of(folder: CaseFolder) -> float:
    result = folder.result
    assert result is not None
    return float(next(iter(result["scores"].values())))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("pairs", nargs="*", type=Path, metavar="BUNDLE COHORT")
    parser.add_argument("--phantoms", type=Path, metavar="BUNDLE", help="measure generated slides")
    parser.add_argument("--kit", type=Path, metavar="DIR", help="measure the two slides of the reference kit")
    parser.add_argument("--cases", type=int, help="the first cases of each cohort only")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in lobule scan")
    options = parser.parse_args()
    settings = {name: json.loads(value) for name, value in (item.split("=") for item in options.set)}
    chosen = [
        (bundle, case)
        for bundle, manifest in zip(options.pairs[::2], options.pairs[1::2], strict=True)
        for case in list(as_cohort(manifest))[: options.cases]
    ]
    if options.phantoms is not None:
        chosen += [(options.phantoms, case) for case in phantoms_in(options.out / "slides")]
    if options.kit is not None:
        chosen += kit_in(options.kit)
    answers = []
    for bundle, case in chosen:
        answers.append(measure(bundle, case, options.out / case.id, settings))
        print(answers[-1].line(), flush=True)
    shares = [answer.answer_s / answer.full_s for answer in answers]
    coarse = statistics.median(answer.coarse_s / answer.full_s for answer in answers)
    print(
        f"{len(answers)} slides: the answer takes {statistics.median(shares):.2f} of the full scan (median), "
        f"at most {max(shares):.2f}; the coarse map {coarse:.2f}"
    )
    (options.out / "answers.json").write_text(json.dumps([vars(answer) for answer in answers], indent=1))


if __name__ == "__main__":
    main()
