"""Speed of a reverse distillation scan, compared with one forward pass per patch at the same stride.

A student is trained on generated slides. The teacher is SqueezeNet with ImageNet weights from
LOBULE_REFERENCE; without that folder, it is the small teacher with random weights, whose scores are less
meaningful. Then one slide is scanned in three ways: patch by patch as in the paper (read, forward, upsample,
smooth, mean) on some rows of the map, extrapolated to all rows; and by `lobule scan` in the exact and in the
shared form, including start-up. The rounds alternate, and the best time of each is used. `exact` and `shared`
are the speed-ups over patch by patch. On all test slides, `rank` is the rank correlation of the cells of both
forms, and `auc_change` the difference of their slide AUC.

With `--quick` the student is not trained, which does not change the times, and `rank` and `auc_change` are
left out. Two cores are used. In each form, a region of one cell and a region of two complete fields, one for
each core, are scanned. The time of the full mode's slide follows from what a further patch takes on a core,
and from the number of patches that each core computes there.

    LOBULE_REFERENCE=… python benchmarks/reverse_distillation.py [--quick] [--work DIR]

With `--work`, the slides, the trained student and the scans of the test slides are stored in DIR, and a
second run only measures the scans.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import lobule
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort, read_cohort
from lobule.geometry import Box
from lobule.grid import MapGrid, cells_by_centre
from lobule.methods.reverse_distillation import AnomalyPredictor, Config, load
from lobule.methods.reverse_distillation.train import frozen_teacher
from lobule.nets.anomaly import smooth, summed
from lobule.nets.reverse_distillation import Student
from lobule.phantoms.cohorts import write_slide_cohort
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import write_slide
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.device import available_cores
from lobule.scanning.open_case import tissue_of
from lobule.scanning.scan import Machine, scan
from lobule.slides.slide import open_slide
from lobule.stitch import State
from lobule.tissue import TissueConfig
from measure import arguments, report

MPP, PATCH, STRIDE = 0.5, 256, 64
"""The published geometry: patches of 256 px every 64 px."""
FULL_CELLS = 3896
"""Cells of the slide of the full mode."""
FULL_PATCHES = {"exact": 1948, "shared": 383}
"""Patches of this slide that the busier of two cores computes in each form. In the shared form, the slide has
four fields of 283, 157, 180 and 100 patches."""
QUICK_CORES = 2
QUICK_SIDE = 3584
QUICK_REGIONS = {"exact": (8, Box(1024, 1024, 1024, 512)), "shared": (16, Box(1024, 1024, 2048, 1024))}
"""The cells along a side of a field, and a region of two complete fields, all tissue. Fields begin at the
slide's corner, so the edges of a region are at multiples of the field's side. The fields of the full mode
have as many cells in the exact form, and 48 in the shared form."""
QUICK_FIELDS = 2
"""Fields of each of these regions."""


def settings() -> dict[str, Any]:
    reference = os.environ.get("LOBULE_REFERENCE")
    if reference:
        trained = Path(reference) / "kit/weights/squeezenet1_1-imagenet-rgb.safetensors"
        teacher = {"teacher": "squeezenet1_1", "weights": str(trained), "shortcut": 1, "rate": 1e-3}
    else:
        teacher = {"teacher": "tiny", "weights": "random", "rate": 3e-3}
    return teacher | {
        "mpp": MPP, "patch": PATCH, "input": PATCH, "stride": STRIDE, "slides": 6, "tumour_patches": 150,
        "normal_patches": 450, "batch": 16, "epochs": 3, "val_slides": 10, "val_patches": 64,
        "augmentation": False,
    }  # fmt: skip


def cohort_in(folder: Path) -> Cohort:
    """Slides of one hospital for training and for the comparison of the forms."""
    if (folder / "cohort.csv").exists():
        return read_cohort(folder / "cohort.csv")
    like = SlidePhantom(0, 2048, 2048, MPP, tissue=0.6, mimics=1)
    return read_cohort(
        write_slide_cohort(
            folder,
            slides=48,
            normal=0.5,
            sites=1,
            split=(0.3, 0.2, 0.5),
            seed=3,
            like=like,
            lesions=((0, 2, 1),),
        )
    )


def slide_in(folder: Path, side: int, tissue: float = 0.6) -> Path:
    """The slide whose scan is timed."""
    write_slide(SlidePhantom(9, side, side, MPP, tissue=tissue, mimics=1), folder / "timed.tif")
    return folder / "timed.tif"


def patch_by_patch(
    predictor: AnomalyPredictor, path: str, every: int, limit: int | None = None
) -> NDArray[np.float64]:
    """Scores of the tissue cells of every `every`-th row, at most `limit` cells."""
    net, config, scores = predictor.net, predictor.config, []
    with open_slide(path) as slide, torch.inference_mode():
        lattice = slide.lattice(mpp=config.mpp)
        tissue = tissue_of(slide, TissueConfig())
        grid = MapGrid(lattice, STRIDE, PATCH)
        cells = np.argwhere(cells_by_centre(grid, tissue.mask, tissue.l0_step))
        for box in grid.field_boxes(cells[cells[:, 0] % every == 0][:limit]).tolist():
            pixels = slide.read_lattice(lattice, Box(*box))
            distances = net(predictor.model.images_of(torch.from_numpy(pixels[None])))
            scores.append(float(smooth(summed(distances, (PATCH, PATCH))).mean()))
    return np.array(scores)


def scan_scores(bundle: Path, cohort: Cohort, out: Path, form: str) -> dict[str, NDArray[np.float32]]:
    """Raw scores of the scored cells of every slide by `lobule scan`; existing results are reused."""
    lobule.scan(
        bundle, cohort, out, settings={"form": form}, runtime="torch", precision="float32", device="cpu"
    )
    scores_of_case = {}
    for case in cohort:
        scores, states = open_results(out).case_folder(case.id).maps[f"map-s{STRIDE}"].read()
        scores_of_case[case.id] = scores[-1][states == State.SCORED]
    return scores_of_case


def slide_scores(out: Path, cohort: Cohort) -> NDArray[np.float64]:
    results = open_results(out)
    return np.array([results.case_folder(case.id).result["scores"]["tumour"] for case in cohort])  # type: ignore[index]


def best_of(rounds: int, tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def working_folder(work: str | None) -> contextlib.AbstractContextManager[str]:
    """The working folder: the given one, or a temporary one."""
    return contextlib.nullcontext(work) if work else tempfile.TemporaryDirectory()


def quick_ratios(folder: Path) -> dict[str, float]:
    """The speed-ups over patch by patch, from two regions of a slide and without a training."""
    path = slide_in(folder, QUICK_SIDE, 0.9)
    config = Config(**settings())
    frozen = frozen_teacher(config.teacher, config.weights, 1, config.input)
    predictor = AnomalyPredictor(config, frozen, Student(frozen.student_shape(config.shortcut)))
    patch_by_patch(predictor, str(path), 20, 4)  # The first use of the network is not measured.
    began = time.perf_counter()
    sampled = len(patch_by_patch(predictor, str(path), 20, 32))
    one_by_one = (time.perf_counter() - began) / sampled
    print(f"{sampled} cells patch by patch, {one_by_one:.3f} s each")
    ratios = {}
    for form in QUICK_REGIONS:
        one_cell_scan, region_scan = scans_of_regions(predictor, path, folder / form, form)
        further_patches = region_scan.patches - one_cell_scan.patches
        per_patch = (region_scan.seconds - one_cell_scan.seconds) / further_patches
        seconds = region_scan.seconds + (FULL_PATCHES[form] - region_scan.patches) * per_patch
        ratios[form] = FULL_CELLS * one_by_one / seconds
        computed = f"{region_scan.patches} patches on the busier core in {region_scan.seconds:.1f} s"
        fixed = f"{counted(one_cell_scan.patches)} and the fixed costs take {one_cell_scan.seconds:.1f} s"
        print(f"{form}: {computed}; {fixed}")
        print(f"  the slide of the full mode would take {seconds:.0f} s")
    print("left out: the training, rank and auc_change")
    return ratios


def counted(patches: int) -> str:
    return "one patch" if patches == 1 else f"{patches} patches"


class RegionScan(NamedTuple):
    """What the scan of a region took."""

    patches: int
    """Patches that the busier core computed."""
    seconds: float


def scans_of_regions(
    predictor: AnomalyPredictor, path: Path, out: Path, form: str
) -> tuple[RegionScan, RegionScan]:
    """Scan a region of one cell and a region of two fields, each after a scan that is not measured.

    All regions are cases of one results folder, so that the scans use the engine settings of the first one
    without measuring them again.
    """
    cells, box = QUICK_REGIONS[form]
    one_cell = Box(box.x, box.y, STRIDE, STRIDE)
    machine = Machine(device="cpu", precision="float32", channels_last=True, cells=cells, cores=QUICK_CORES)
    options = ScanOptions(settings={"form": form})
    identity = {
        "method": "reverse_distillation",
        "fingerprint": "0" * 64,
        "classes": list(predictor.config.classes),
    }
    cases: list[Case] = []
    scans: list[RegionScan] = []
    images_of = predictor.model.images_of
    for region in (one_cell, one_cell, box):
        patches: Counter[int] = Counter()

        def counting(pixels: torch.Tensor) -> torch.Tensor:
            patches[threading.get_ident()] += len(pixels)  # noqa: B023
            return images_of(pixels)

        number = str(len(cases))
        cases.append(Case(number, number, "region", str(path), mpp=MPP, l0_box=region))
        predictor.model.images_of = counting  # type: ignore[method-assign]
        began = time.perf_counter()
        report = scan(predictor, identity, Cohort(tuple(cases)), out, options, machine)
        scans.append(RegionScan(max(patches.values()), time.perf_counter() - began))
        if report.failed:
            raise RuntimeError(f"the scan failed: {report.failed}")
        if region == box and report.counters.fields_done != QUICK_FIELDS:
            raise RuntimeError(
                f"the region has {report.counters.fields_done} fields in place of {QUICK_FIELDS}"
            )
    predictor.model.images_of = images_of  # type: ignore[method-assign]
    return scans[1], scans[2]


def main() -> None:
    options = arguments(
        __doc__ or "", work="folder for slides, student and scans; a second run only measures times"
    )
    torch.set_num_threads(QUICK_CORES if options.quick else available_cores())
    if options.quick:
        with tempfile.TemporaryDirectory() as name:
            report("reverse_distillation", quick_ratios(Path(name)))
        return
    with working_folder(options.work) as name:
        folder = Path(name)
        cohort = cohort_in(folder / "cohort")
        bundle = folder / "bundle"
        if not (bundle / "model.json").exists():
            lobule.train("reverse_distillation", cohort, bundle, settings=settings(), device="cpu")
        predictor = load(read_bundle(bundle))
        test = cohort.split("test")
        cells = {form: scan_scores(bundle, test, folder / form, form) for form in ("exact", "shared")}
        labels = np.array([case.label == "tumor" for case in test])
        auc = {form: float(roc_auc_score(labels, slide_scores(folder / form, test))) for form in cells}
        pooled = {
            form: np.concatenate([scores_of_case[case.id] for case in test])
            for form, scores_of_case in cells.items()
        }
        rank = float(spearmanr(pooled["exact"], pooled["shared"]).statistic)
        first = next(iter(test))
        assert first.path is not None
        path = str(slide_in(folder, 5120))
        timed_cohort = Cohort((Case("timed", "timed", "slide", path, mpp=MPP),))
        np.testing.assert_allclose(
            patch_by_patch(predictor, first.path, 1), cells["exact"][first.id], rtol=1e-4, atol=1e-4
        )
        timed_results, scans = folder / "one", {}

        def scan_timed(form: str) -> None:
            shutil.rmtree(timed_results, ignore_errors=True)
            scans[form] = scan_scores(bundle, timed_cohort, timed_results, form)["timed"]

        patch_counts: list[int] = []
        seconds = best_of(
            2,
            {
                "one by one": lambda: patch_counts.append(len(patch_by_patch(predictor, path, 8))),
                "exact": lambda: scan_timed("exact"),
                "shared": lambda: scan_timed("shared"),
            },
        )
    count, sampled = len(scans["exact"]), patch_counts[0]
    full_seconds = seconds["one by one"] * count / sampled
    ratios = {form: full_seconds / seconds[form] for form in cells}
    print(
        f"{count} cells, {sampled} patch by patch: exact {ratios['exact']:.2f}, shared {ratios['shared']:.2f}"
    )
    print(f"{len(test)} slides: rank {rank:.4f}; AUC {auc['exact']:.3f} exact, {auc['shared']:.3f} shared")
    change = abs(auc["exact"] - auc["shared"])
    report("reverse_distillation", {**ratios, "rank": rank, "auc_change": change})


if __name__ == "__main__":
    main()
