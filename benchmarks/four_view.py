"""How much quicker a four-view exam is than the published way, at equal scores.

A generated exam of four 2,600 × 1,900 views; networks of the published size with seeded random weights; all
cores. The published way is the same networks as torchvision and PyTorch run them, patch by patch (the better
of batch 1 and batch 100) and one window at a time. It is sampled and extrapolated to the exam. So are the
exact heatmaps: samples of two sizes give the seconds of a patch, and those that a view takes in addition.
Everything else runs whole. Keys:

- `exact`: heatmaps patch by patch, to 1e-5 those of the published way (checked on the sample);
- `fast`: heatmaps from one look at each view, with the comparison with exact patches that a scan makes;
- `image_only`, `image_only_bf16`: an exam of 10 windows a view without heatmaps, in float32 and bfloat16;
- `peak_gb`: peak memory of a scan with fast heatmaps and of one without, the greater.

`--quick` measures heatmaps of one view instead of four, with fewer patches and in smaller batches of the
published way, and two windows a view instead of ten. It leaves out `image_only_bf16` and `peak_gb`, which
take too long.

    python benchmarks/four_view.py [--quick]
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

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

SAMPLED_EPOCHS = 2
PRECISIONS = ("float32", "bfloat16")
ROOM = 1 << 29
EQUAL = 1e-5


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    views: int
    """Number of views whose heatmaps are measured."""
    patches: tuple[int, int]
    """The two numbers of patches of a view. They fill batches of 8 for every core of a machine with two."""
    batch: int
    """The larger batch of the published way."""
    batched: int
    """Number of patches of a view that it is measured with, one of `patches`."""
    rounds: int
    epochs: int
    """Windows of a view, of an exam without heatmaps."""
    published_epochs: int
    """Windows of a view that the published way is sampled with."""
    scale: int
    """The pixels of the exam are repeated so many times, because that is quicker than generating them."""


FULL = Plan(len(VIEWS), (16, 112), 100, 112, 2, 10, 2, 1)
QUICK = Plan(1, (16, 32), 16, 16, 1, 2, 1, 4)
SIZE = (2600, 1900)


class Bench:
    """An exam, its networks, and the scanner's pipeline to run passes in."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, self.runs = folder, plan, 0
        size = (SIZE[0] // plan.scale, SIZE[1] // plan.scale)
        self.manifest = write_exams(folder / "exam", exams=1, size=size, seed=1)
        if plan.scale > 1:
            enlarge_pictures(folder / "exam" / "images", plan.scale)
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
        self.measured = {view: self.views[view] for view in list(self.views)[: plan.views]}
        """The views whose heatmaps are measured."""

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

    def sampled(self, view: str, count: int) -> list[int]:
        """Indices of patches, evenly over the grid, so that blank patches are as frequent as in the grid."""
        grid = self.grids[view]
        return [int(i) for i in np.linspace(0, len(grid) - 1, min(count, len(grid)))]

    def published_patches(self, batch: int, count: int) -> tuple[float, dict[str, np.ndarray]]:
        """Seconds of one patch, and the scores of `count` patches of each view."""
        (net,) = self.predictors[True].nets.patch_nets
        patches, seconds = 0, 0.0
        scores: dict[str, list[np.ndarray]] = {}
        for view, image in self.measured.items():
            pixels, corners = standardise(image.pixels, np.float64), list(self.grids[view].corners())
            sampled = self.sampled(view, count)
            scores[view] = []
            began = time.perf_counter()
            for start in range(0, len(sampled), batch):
                some = np.stack([cut_patch(pixels, *corners[i]) for i in sampled[start : start + batch]])
                scores[view].append(net(torch.from_numpy(some)).softmax(dim=1).numpy())
            seconds += time.perf_counter() - began
            patches += len(sampled)
        return seconds / patches, {view: np.concatenate(rows) for view, rows in scores.items()}

    def exact_patches(self, engine: EngineSettings, count: int) -> tuple[float, dict[str, np.ndarray]]:
        """Seconds and scores of `count` patches of each view."""
        predictor, seconds = self.predictors[True], 0.0
        scores: dict[str, np.ndarray] = {}
        for view, image in self.measured.items():
            with self.pipeline(predictor, engine) as run:
                began = time.perf_counter()
                source = PatchView(image, patch_frame(image, Config()))
                sampled = self.sampled(view, count)
                steps = ViewPatches(view, image, source, self.grids[view], engine).scores(sampled)
                rows = finished(steps, run)
                seconds += time.perf_counter() - began
            scores[view] = np.stack([rows[i] for i in range(len(sampled))])
        return seconds, scores

    def fast_heatmaps(self, engine: EngineSettings) -> float:
        apart = []
        began = time.perf_counter()
        with self.pipeline(self.predictors[True], engine) as run:
            for view, image in self.measured.items():
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


def enlarge_pictures(folder: Path, scale: int) -> None:
    """Repeat the pixels of pictures, to fill `SIZE`."""
    for path in folder.rglob("*.png"):
        pixels = np.asarray(Image.open(path)).repeat(scale, axis=0).repeat(scale, axis=1)
        Image.fromarray(pixels).save(path, compress_level=1)


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
    quick = measure.arguments(__doc__ or "").quick
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(Path(folder), QUICK if quick else FULL)
        ratios = heatmap_ratios(bench) | window_ratios(bench, ("float32",) if quick else PRECISIONS)
        if quick:
            print("Not measured with --quick: image_only_bf16, peak_gb")
        else:
            ratios["peak_gb"] = peak(bench)
    for name, ratio in ratios.items():
        print(f"{name:18s} {ratio:7.2f}")
    measure.report("four_view", ratios)


def heatmap_ratios(bench: Bench) -> dict[str, float]:
    predictor, plan = bench.predictors[True], bench.plan
    few, many = plan.patches
    total = sum(len(bench.grids[view]) for view in bench.measured)
    computed = sum(
        len(distinct_patches(bench.grids[view], image.pixels)[0]) for view, image in bench.measured.items()
    )
    print(f"{total} patches of {plan.views} views, of which {computed} differ from one another")
    engine = bench.engine(predictor, "float32")
    bench.exact_patches(engine, few)  # The first use of the networks is not counted.
    seconds: dict[str, list[float]] = {name: [] for name in ("one", "batch", "few", "many", "fast")}
    ours: dict[int, dict[str, np.ndarray]] = {}
    for _ in range(plan.rounds):
        torch.set_num_threads(available_cores())
        seconds["one"].append(bench.published_patches(1, few // 2)[0])
        elapsed, ours[few] = bench.exact_patches(engine, few)
        seconds["few"].append(elapsed)
        torch.set_num_threads(available_cores())
        each, theirs = bench.published_patches(plan.batch, plan.batched)
        seconds["batch"].append(each)
        seconds["one"].append(bench.published_patches(1, few // 2)[0])
        elapsed, ours[many] = bench.exact_patches(engine, many)
        seconds["many"].append(elapsed)
        apart = max(float(np.abs(ours[plan.batched][view] - theirs[view]).max()) for view in theirs)
        if apart > EQUAL:
            raise SystemExit(f"exact heatmaps differ from the published way by {apart:.1e}")
        fast = bench.engine(predictor, "float32", **{"reading.painting": "fast"})
        seconds["fast"].append(bench.fast_heatmaps(fast))
        engine = bench.engine(predictor, "float32")
    print(f"exact scores differ by at most {apart:.1e}")
    best = {name: min(values) for name, values in seconds.items()}
    views = len(bench.measured)
    of_patch = (best["many"] - best["few"]) / (views * (many - few))
    of_views = max(0.0, best["few"] - views * few * of_patch)
    print(
        f"milliseconds of a patch: published {1e3 * best['one']:.1f} one by one, "
        f"{1e3 * best['batch']:.1f} in batches of {plan.batch}; exact {1e3 * of_patch:.1f}, and "
        f"{1e3 * of_views / views:.0f} for each view"
    )
    published = total * min(best["one"], best["batch"])
    return {"exact": published / (of_views + computed * of_patch), "fast": published / best["fast"]}


def window_ratios(bench: Bench, precisions: Sequence[str]) -> dict[str, float]:
    predictor, plan = bench.predictors[False], bench.plan
    best = dict.fromkeys(("published", *precisions), float("inf"))
    scores: dict[str, dict[str, float]] = {}
    sampled = plan.published_epochs
    for _ in range(plan.rounds):
        torch.set_num_threads(available_cores())
        best["published"] = min(best["published"], bench.published_windows(sampled) * plan.epochs / sampled)
        for precision in precisions:
            # A slow precision is sampled too.
            epochs = plan.epochs if precision == "float32" else SAMPLED_EPOCHS
            seconds, scores[precision] = bench.our_windows(bench.engine(predictor, precision), epochs)
            best[precision] = min(best[precision], seconds * plan.epochs / epochs)
    ratios = {"image_only": best["published"] / best["float32"]}
    if "bfloat16" in precisions:
        _, scores["float32"] = bench.our_windows(bench.engine(predictor, "float32"), SAMPLED_EPOCHS)
        apart = max(abs(scores["float32"][name] - value) for name, value in scores["bfloat16"].items())
        print(f"scores in bfloat16 differ from float32 by at most {apart:.1e}")
        ratios["image_only_bf16"] = best["published"] / best["bfloat16"]
    return ratios


def peak(bench: Bench) -> float:
    """GB that a scan of the exam needs at most, the interpreter and all."""
    highest = 0
    for heatmaps in (True, False):
        bundle = bench.bundles[heatmaps]
        out = bench.folder / f"peak{int(heatmaps)}"
        command = ["-m", "lobule", "scan", str(bundle), str(bench.manifest), "--out", str(out)]
        command += ["--set", "reading.epochs=1"] + (["--set", "reading.painting=fast"] if heatmaps else [])
        highest = max(highest, measure.peak_bytes(command))
    return highest / 1e9


if __name__ == "__main__":
    main()
