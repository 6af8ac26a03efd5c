"""How much quicker a four-view exam is than the published way, at equal scores.

A generated exam of four 2,600 × 1,900 views; networks of the published size with seeded random weights; all
cores. The published way is the same networks as torchvision and PyTorch run them, patch by patch (the better
of batch 1 and batch 100) and one window at a time. It is sampled and extrapolated to the exam, and so are the
exact heatmaps; everything else runs whole. Keys:

- `exact`: heatmaps patch by patch, to 1e-5 those of the published way (checked on the sample);
- `fast`: heatmaps from one look at each view, with the comparison with exact patches that a scan makes;
- `image_only`, `image_only_bf16`: an exam of 10 windows a view without heatmaps, in float32 and bfloat16;
- `peak_gb`: peak memory of a scan with fast heatmaps and of one without, the greater.

    python benchmarks/four_view.py [--quick]
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import measure
from lobule.bundles import read_bundle
from lobule.cohort import Case, read_cohort
from lobule.mammograms.exam_views import ExamView, PatchView
from lobule.mammograms.published.patches import PATCH, distinct_patches, draw_grid
from lobule.mammograms.published.windows import network_input, plan_exam, standardise
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view import Config, FourViewPredictor, load, save
from lobule.methods.four_view.heatmaps import ViewPatches
from lobule.methods.four_view.model import build
from lobule.methods.four_view.planning import patch_frame
from lobule.nets.four_view import ViewWise
from lobule.phantoms.exams import write_exams
from lobule.results.folder import CaseFolder
from lobule.scanning.cards import Card
from lobule.scanning.contract import EngineSettings, Pass, ScanOptions
from lobule.scanning.device import available_cores, replicas_for
from lobule.scanning.open_case import OpenedCase
from lobule.scanning.pipeline import Pipeline
from lobule.scanning.stores import open_sink
from lobule.settings import parse

ROUNDS = 2
EPOCHS = 10
SAMPLED_EPOCHS = 2
ROOM = 1 << 29
EQUAL = 1e-5


class Bench:
    """An exam, its networks, and the scanner's pipeline to run passes in."""

    def __init__(self, folder: Path, size: tuple[int, int], sample: int, batches: tuple[int, int]) -> None:
        self.folder, self.sample, self.batches, self.runs = folder, sample, batches, 0
        self.manifest = write_exams(folder / "exam", exams=1, size=size, seed=1)
        self.case: Case = read_cohort(self.manifest).cases[0]
        torch.manual_seed(0)
        self.bundles = {}
        for heatmaps in (False, True):
            config = parse(Config, {"architecture.heatmaps": heatmaps})
            networks = build(config)
            self.bundles[heatmaps] = folder / f"bundle{int(heatmaps)}"
            save(self.bundles[heatmaps], config, networks.members[0], *networks.patch_nets)
        self.predictors = {key: load(read_bundle(path)) for key, path in self.bundles.items()}
        self.views: dict[str, ExamView] = dict(self.predictors[True].images(self.case, ScanOptions()))  # type: ignore[arg-type]
        rng = random.Random(0)
        self.grids = {v: draw_grid(i.shape, rng) for v, i in self.views.items()}

    def engine(self, predictor: FourViewPredictor, precision: str, **settings: Any) -> EngineSettings:
        replicas, threads = replicas_for("cpu", available_cores())
        engine = EngineSettings(precision=precision, replicas=replicas, replica_threads=threads)
        options = ScanOptions(settings=settings)
        engine = predictor.model.choose_batch(engine, ROOM, options)
        predictor.model.move_to_device(engine, options)
        return engine

    @contextmanager
    def pipeline(self, predictor: FourViewPredictor, engine: EngineSettings) -> Iterator[Callable[..., Any]]:
        """Runs one pass into a fresh folder and gives its store."""
        self.runs += 1
        folder = CaseFolder(self.folder / f"run{self.runs}")
        with Pipeline([Card(engine.device, predictor.model)], engine, available_cores()) as pipeline:

            def run(pass_: Pass) -> Any:
                sink = open_sink(pass_, folder)
                pipeline.run_pass(0, pass_, {**self.views, **pass_.sources}, sink)
                return sink.finish()

            yield run

    # -- heatmaps -----------------------------------------------------------------------------------------

    def sampled(self, view: str) -> list[int]:
        """Places in the grid, evenly over it: blank patches count as they come."""
        count = min(self.sample // len(VIEWS), len(self.grids[view]))
        return [int(i) for i in np.linspace(0, len(self.grids[view]) - 1, count)]

    def published_patches(self, batch: int) -> tuple[float, dict[str, np.ndarray]]:
        """Seconds a patch, and the scores of the sample."""
        (net,) = self.predictors[True].nets.patch_nets
        patches, seconds = 0, 0.0
        scores: dict[str, list[np.ndarray]] = {}
        for view, image in self.views.items():
            pixels, corners = standardise(image.pixels, np.float64), list(self.grids[view].corners())
            sampled = self.sampled(view)
            scores[view] = []
            began = time.perf_counter()
            for start in range(0, len(sampled), batch):
                some = np.stack([cut_patch(pixels, *corners[i]) for i in sampled[start : start + batch]])
                scores[view].append(net(torch.from_numpy(some)).softmax(dim=1).numpy())
            seconds += time.perf_counter() - began
            patches += len(sampled)
        return seconds / patches, {view: np.concatenate(rows) for view, rows in scores.items()}

    def exact_patches(self, engine: EngineSettings) -> tuple[float, dict[str, np.ndarray]]:
        """Seconds a patch that is computed, and the scores of the sample."""
        predictor, patches, seconds = self.predictors[True], 0, 0.0
        scores: dict[str, np.ndarray] = {}
        for view, image in self.views.items():
            with self.pipeline(predictor, engine) as run:
                began = time.perf_counter()
                source, sampled = PatchView(image, patch_frame(image, Config())), self.sampled(view)
                rows = finished(
                    ViewPatches(view, image, source, self.grids[view], engine).scores(sampled), run
                )
                seconds += time.perf_counter() - began
            scores[view] = np.stack([rows[i] for i in range(len(sampled))])
            patches += len(sampled)
        return seconds / patches, scores

    def fast_heatmaps(self, engine: EngineSettings) -> float:
        apart = []
        began = time.perf_counter()
        with self.pipeline(self.predictors[True], engine) as run:
            for view, image in self.views.items():
                source = PatchView(image, patch_frame(image, Config()))
                steps = ViewPatches(view, image, source, self.grids[view], engine).heatmaps("fast")
                apart.append(finished(steps, run)[1])
        seconds = time.perf_counter() - began
        far = np.concatenate(apart)
        print(
            f"fast heatmaps: scores of {len(far) // 2} patches differ from exact ones by {far.mean():.4f} on "
            f"average, {far.max():.4f} at most (random weights)"
        )
        return seconds

    # -- windows ------------------------------------------------------------------------------------------

    def published_windows(self, epochs: int) -> float:
        """Seconds of some epochs, one window at a time."""
        net = self.predictors[False].nets.members[0]
        assert isinstance(net, ViewWise)
        began = time.perf_counter()
        images_of_view = {view: [image] for view, image in self.views.items()}
        for epoch in plan_exam(images_of_view, np.random.RandomState(0), epochs=epochs):
            inputs = {
                view: torch.from_numpy(network_input(self.views[view].pixels, plan.unpadded, plan.size))[None]
                for view, (_, plan) in epoch.items()
            }
            ViewWise.exam_scores(net(inputs))
        return time.perf_counter() - began

    def our_windows(self, engine: EngineSettings, epochs: int) -> tuple[float, dict[str, float]]:
        predictor, options = self.predictors[False], ScanOptions(settings={"reading.epochs": epochs})
        began = time.perf_counter()
        with self.pipeline(predictor, engine) as run:
            steps = predictor.steps(OpenedCase(self.case, self.views, options, engine))
            scores = dict(finished(steps, run).scores)
        return time.perf_counter() - began, scores


def cut_patch(standardised: np.ndarray, row: int, column: int) -> np.ndarray:
    """One patch with three equal channels, as the published network reads it."""
    grey = standardised[row : row + PATCH, column : column + PATCH].astype(np.float32)
    return np.broadcast_to(grey, (3, PATCH, PATCH))


def finished(steps: Any, run: Callable[[Pass], Any]) -> Any:
    """Run the passes of a generator and return its result."""
    store = None
    try:
        while True:
            store = run(next(steps) if store is None else steps.send(store))
    except StopIteration as end:
        return end.value


def main() -> None:
    options = measure.arguments(__doc__ or "")
    torch.set_num_threads(available_cores())
    size, sample, batches, rounds, epochs = (2600, 1900), 400, (1, 100), ROUNDS, EPOCHS
    if options.quick:
        size, sample, batches, rounds, epochs = (1300, 950), 8, (1, 4), 1, 1
        print("Quick: an exam of 1,300 × 950 views, 8 patches in batches of 1 and 4, 1 window a view.")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(Path(folder), size, sample, batches)
        ratios = heatmap_ratios(bench, rounds) | window_ratios(bench, rounds, epochs)
        ratios["peak_gb"] = peak(bench, (True,) if options.quick else (True, False))
    for name, ratio in ratios.items():
        print(f"{name:18s} {ratio:7.2f}")
    measure.report("four_view", ratios)


def heatmap_ratios(bench: Bench, rounds: int) -> dict[str, float]:
    predictor = bench.predictors[True]
    patches = sum(len(grid) for grid in bench.grids.values())
    computed = 0
    for view, image in bench.views.items():
        computed += len(distinct_patches(bench.grids[view], image.pixels)[0])
    print(f"{patches} patches, of which {computed} differ from one another")
    best = {"exact": float("inf"), "fast": float("inf"), **{str(b): float("inf") for b in bench.batches}}
    for _ in range(rounds):
        for batch in bench.batches:
            torch.set_num_threads(available_cores())
            seconds, theirs = bench.published_patches(batch)
            best[str(batch)] = min(best[str(batch)], seconds * patches)
        seconds, ours = bench.exact_patches(bench.engine(predictor, "float32"))
        best["exact"] = min(best["exact"], seconds * computed)
        apart = max(float(np.abs(ours[view] - theirs[view]).max()) for view in ours)
        if apart > EQUAL:
            raise SystemExit(f"exact heatmaps differ from the published way by {apart:.1e}")
        best["fast"] = min(
            best["fast"],
            bench.fast_heatmaps(bench.engine(predictor, "float32", **{"reading.painting": "fast"})),
        )
    print(f"exact scores differ by at most {apart:.1e}")
    published = min(best[str(batch)] for batch in bench.batches)
    return {key: published / best[key] for key in ("exact", "fast")}


def window_ratios(bench: Bench, rounds: int, epochs: int) -> dict[str, float]:
    predictor = bench.predictors[False]
    best = dict.fromkeys(("published", "float32", "bfloat16"), float("inf"))
    scores: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        torch.set_num_threads(available_cores())
        sampled = min(SAMPLED_EPOCHS, epochs)
        best["published"] = min(best["published"], bench.published_windows(sampled) * epochs / sampled)
        for precision in ("float32", "bfloat16"):
            # a slow precision is sampled too
            few = epochs if precision == "float32" else sampled
            seconds, scores[precision] = bench.our_windows(bench.engine(predictor, precision), few)
            best[precision] = min(best[precision], seconds * epochs / few)
    _, scores["float32"] = bench.our_windows(bench.engine(predictor, "float32"), sampled)
    apart = max(abs(scores["float32"][name] - value) for name, value in scores["bfloat16"].items())
    print(f"scores in bfloat16 differ from float32 by at most {apart:.1e}")
    return {
        "image_only": best["published"] / best["float32"],
        "image_only_bf16": best["published"] / best["bfloat16"],
    }


def peak(bench: Bench, with_heatmaps: Sequence[bool]) -> float:
    """GB that a scan of the exam needs at most, the interpreter and all."""
    highest = 0
    for heatmaps in with_heatmaps:
        bundle = bench.bundles[heatmaps]
        out = bench.folder / f"peak{int(heatmaps)}"
        command = ["-m", "lobule", "scan", str(bundle), str(bench.manifest), "--out", str(out)]
        command += ["--set", "reading.epochs=1"] + (["--set", "reading.painting=fast"] if heatmaps else [])
        highest = max(highest, measure.peak_bytes(command))
    return highest / 1e9


if __name__ == "__main__":
    main()
