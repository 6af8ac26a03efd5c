"""Scan efficiency: how much of what the machine can do a scan turns into reading and computing.

A generated slide of 20,480 px a side is scanned (a) by a ResNet-18 of 224-px tiles and (b) by the small dense
net at stride 32. Each scan runs with torch in float32, with OpenVINO in float32 (keys that end in
`_openvino`) and with OpenVINO in int8 (`_int8`); `--form` selects one of them. In the same process, in turns
with the scan, the same fields are read by the same loader without a model, and the model runs alone on as
many batches of pixels in memory, in the same replicas.

    on a CPU   efficiency = (CPU seconds of reading alone + of the model alone) / (cores × wall)
    on a GPU   efficiency = time of the slower of reading and model, each alone / wall

The wall is that of the case, from opening it to its written result: finding tissue counts as a loss, the one
measurement of precisions before the first case does not. Each figure is the least of the rounds. With
`--quick`, fewer fields are scanned, so the time of opening the slide and finding its tissue, which does not
depend on their number, is subtracted from the wall; only torch is measured.

`decodes_per_tile` is the compressed tiles that the scan decoded over the distinct ones under its fields, all
of the scanned level: what finding the tissue decodes (of a smaller level) is counted on a slide opened for
the purpose, and taken off. The worse of the two scans counts.

    python benchmarks/scan.py [--quick] [--form FORM] [--kind KIND] [--slide FILE] [--bundles DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from lobule.allocator import keep_freed_memory
from lobule.geometry import Box
from measure import report

SIDE, MPP, TILE = 20_480, 0.25, 224
KINDS = ("tiles", "dense")
FORMS = {"torch": ("torch", "float32"), "openvino": ("openvino", "float32"), "int8": ("openvino", "int8")}
"""The runtime and precision of each scan, by the name of the option `--form`."""
CALIBRATION_FIELDS = 40
MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How much is scanned."""

    tissue: float
    rounds: int
    boxes: dict[str, Box | None]
    """The region of each scan in level-0 pixels; None is the whole slide."""


FULL = Plan(0.3, 2, {"tiles": Box(2_688, 6_720, 11_648, 4_032), "dense": None})
QUICK = Plan(0.08, 2, {"tiles": Box(4_480, 6_272, 3_584, 1_792), "dense": None})


@dataclass(frozen=True)
class TimeSpent:
    """Seconds that something took."""

    wall: float
    cpu: float


def time_spent_by(work: Callable[[], object]) -> TimeSpent:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return TimeSpent(time.perf_counter() - wall, time.process_time() - cpu)


def least(some: list[TimeSpent]) -> TimeSpent:
    return TimeSpent(min(one.wall for one in some), min(one.cpu for one in some))


# -- what is scanned -----------------------------------------------------------------------------------------


def paint(path: Path, tissue: float) -> None:
    from lobule.phantoms.slides import SlidePhantom, write_slide

    write_slide(SlidePhantom(seed=11, width=SIDE, height=SIDE, mpp=MPP, tissue=tissue, sections=1), path)


def make_bundle(kind: str, folder: Path) -> Path:
    """Write a bundle with seeded weights. Its scores are meaningless but take as long as real ones."""
    import torch

    torch.manual_seed(5)
    out = folder / f"bundle-{kind}"
    if out.exists():
        return out
    if kind == "dense":
        from lobule.methods.scannet import Config, save
        from lobule.nets.backbones import BACKBONES
        from lobule.nets.scaling import PLAIN_SCALING

        save(out, Config(trunk="tiny", mpp=MPP), BACKBONES["tiny"](2), PLAIN_SCALING)
        return out
    from torchvision.models import resnet18

    from lobule.methods.classifier import convert

    torch.save(resnet18(num_classes=2).state_dict(), folder / "weights.pt")
    transform = [{"name": "ToTensor"}]
    geometry_fields = {
        "class_names": ["normal", "tumour"], "patch_size_pixels": TILE, "spacing_um_px": MPP,
        "transform": transform,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(geometry_fields), encoding="utf-8")
    convert(folder / "weights.pt", folder / "config.json", out, architecture="torchvision:resnet18")
    return out


def quantised(bundle: Any, slide: Path, folder: Path) -> Any:
    """Write and return a quantised copy of a bundle."""
    from lobule.bundles import read_bundle

    out = folder / f"{bundle.path.name}-int8"
    if out.exists():
        return read_bundle(out)
    command = ["weights", "quantize", str(bundle.path), str(slide), "--out", str(out), "--scans", "0"]
    command += ["--fields", str(CALIBRATION_FIELDS)]
    subprocess.run([sys.executable, "-m", "lobule", *command], stdout=subprocess.DEVNULL, check=True)
    return read_bundle(out)


# -- the parts alone -----------------------------------------------------------------------------------------


def read_all(pass_: Any, images: Any, size: int, readers: int) -> None:
    """Every batch of a pass through the scanner's own loader, on as many threads, and away with it."""
    from lobule.scanning.loader import batches_of, load_batch

    jobs = deque(batches_of(pass_.fields, size))

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                load_batch(pass_, images, jobs.popleft(), size)

    in_threads(readers, work)


def compute_all(model: Any, engine: Any, key: Any, batch: Any, batches: int) -> None:
    """The model on as many batches, in the replicas and threads of the pipeline, pixels in memory."""
    import torch

    from lobule.scanning.cards import to_device

    numbers = count()
    on_gpu = engine.device.startswith("cuda")

    def replica() -> None:
        torch.set_num_threads(engine.replica_threads)
        stream = torch.cuda.stream(torch.cuda.Stream(engine.device)) if on_gpu else contextlib.nullcontext()
        with torch.inference_mode(), stream:
            while next(numbers) < batches:
                outputs = model.forward(key, to_device(batch, engine.device))
                for tensor in outputs.values():
                    tensor.float().cpu().numpy()

    in_threads(engine.replicas, replica)


def in_threads(number: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- one scan ------------------------------------------------------------------------------------------------


def one(kind: str, form: str, slide: Path, bundles: Path, folder: Path, plan: Plan) -> dict[str, float]:
    """Everything measured of one kind of scan; run as a child, so that its peak memory is its own."""
    from lobule.bundles import read_bundle
    from lobule.cohort import Case, Cohort
    from lobule.methods import load
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.device import available_cores
    from lobule.scanning.loader import load_batch
    from lobule.scanning.scan import Machine, scan

    bundle = read_bundle(make_bundle(kind, bundles))
    if form == "int8":
        bundle = quantised(bundle, slide, bundles)
    runtime, precision = FORMS[form]
    predictor, machine, options = load(bundle), Machine(runtime=runtime, precision=precision), ScanOptions()
    engines = noting_engine(predictor.model)
    bundle_fields = {
        "method": bundle.method,
        "fingerprint": bundle.fingerprint,
        "classes": list(bundle.classes),
    }
    box = plan.boxes[kind]
    case = Case("slide", "patient", "slide" if box is None else "region", str(slide), l0_box=box)
    slide.read_bytes()  # into the page cache, for all rounds alike
    before = memory("VmRSS")
    walls, starts, scans, reads, models, in_scan = [], [], [], [], [], []
    after, sizes = 0, (0, 0, 0)
    decoded = distinct = 0
    for turn in range(plan.rounds):
        out = folder / f"{kind}-{form}-{turn}"
        cpu = time.process_time()
        ended = scan(
            predictor, bundle_fields, Cohort((case,)), out, options, machine, int8_folder=bundle.int8_folder
        )
        scans.append(time.process_time() - cpu)
        in_scan.append(ended.counters.model_s)
        if ended.counts != {"complete": 1}:
            raise RuntimeError(f"the scan ended with {ended.counts}: {ended.failed}")
        walls.append(json.loads((out / "cases" / "slide" / "run.json").read_text())["seconds"])
        after = after or memory("VmHWM")
        engine = engines[-1]
        machine = replace(  # the next rounds run as the first did
            machine, precision=engine.precision, channels_last=engine.channels_last, batch=engine.batch,
            cells=engine.cells,
        )  # fmt: skip
        began = time.perf_counter()
        with opened(predictor, case, engine, options, machine) as (images, pass_, for_tissue):
            starts.append(time.perf_counter() - began)
            size = pass_.batch or engine.batch
            readers = machine.readers or available_cores()
            reads.append(time_spent_by(lambda: read_all(pass_, images, size, readers)))  # noqa: B023
            rows, batches = batch_rows(pass_, size)
            batch = load_batch(pass_, images, rows, size)
            decoded, distinct = ended.counters.tiles_decoded - for_tissue, tiles_under(images["slide"], pass_)
            sizes = (len(pass_.fields), batches, size)
        models.append(time_spent_by(lambda: compute_all(predictor.model, engine, pass_.key, batch, batches)))  # noqa: B023
    read, model, wall, cores = least(reads), least(models), min(walls), available_cores()
    measured_wall = wall - min(starts) if plan is QUICK else wall
    if engine.device == "cpu":
        efficiency = (read.cpu + model.cpu) / (cores * measured_wall)
    else:
        efficiency = max(read.wall, model.wall) / measured_wall
    both, busy = read.cpu + model.cpu, model.cpu / (cores * model.wall)
    print(
        f"{kind}, {form}: {sizes[0]} fields in {sizes[1]} batches of {sizes[2]}, {engine.replicas} replicas"
    )
    print(f"  {engine.runtime} {engine.precision} on {engine.device}")
    rates = f"{sizes[0] / model.wall:.3g} fields/s, the scan {sizes[0] / measured_wall:.3g}"
    print(f"  the model alone computes {rates}, so {model.wall / measured_wall:.2f} of it")
    print(f"  the model alone kept the cores {busy:.0%} busy")
    print(f"  reading is {read.cpu / both:.1%} of the CPU time of both")
    print(f"  the whole scan used {min(scans) / both:.2f} of that CPU time")
    print(
        f"  in the scan the model took {min(in_scan) / (engine.replicas * model.wall):.2f} of its time alone"
    )
    print(f"  opening and finding tissue take {min(starts) / wall:.1%} of the wall of {wall:.1f} s")
    print(f"  {decoded} compressed tiles decoded, {distinct} lie under the fields")
    print(f"  peak {after / MIB:.0f} MiB, {(after - before) / MIB:.0f} MiB beyond what the scan began with")
    return {
        "efficiency": efficiency,
        "decodes": decoded / distinct,
        "memory": (after - before) / machine.max_ram,
    }


def noting_engine(model: Any) -> list[Any]:
    """Every engine settings that the scanner places the model with, the last being what it runs with."""
    engines: list[Any] = []
    original_place = model.move_to_device

    def noting(engine: Any, options: Any) -> None:
        engines.append(engine)
        original_place(engine, options)

    model.move_to_device = noting
    return engines


@contextlib.contextmanager
def opened(
    predictor: Any, case: Any, engine: Any, options: Any, machine: Any
) -> Iterator[tuple[Any, Any, int]]:
    """The images of a case, its first pass, and how many tiles were decoded to find its tissue."""
    from lobule.scanning.cases import MAX_OPEN_CASES
    from lobule.scanning.open_case import OpenedCase

    open_case = OpenedCase(case, predictor.images(case, options), options, engine)
    try:
        for image in open_case.images.values():
            image.use_cache(int(machine.max_ram * 0.2) // MAX_OPEN_CASES)  # type: ignore[attr-defined]
        pass_ = next(predictor.steps(open_case))
        yield open_case.images, pass_, open_case.images["slide"].tiles_decoded  # type: ignore[attr-defined]
    finally:
        open_case.close()


def batch_rows(pass_: Any, size: int) -> tuple[Any, int]:
    """The rows of a batch from the middle of a pass, and how many batches it has."""
    from lobule.scanning.loader import batches_of

    batches = batches_of(pass_.fields, size)
    return batches[len(batches) // 2], len(batches)


def tiles_under(slide: Any, pass_: Any) -> int:
    """Distinct compressed tiles under the fields of a pass."""
    from lobule.geometry import tiles_over

    lattice = pass_.fields.lattices[0]
    if lattice.level is None:
        raise RuntimeError("this benchmark scans a level of the slide, and the fields are resampled")
    level = slide.levels[lattice.level]
    level_box = Box(0, 0, *level.size)
    tiles: set[tuple[int, int]] = set()
    for index in range(len(pass_.fields)):
        tiles.update(tiles_over(pass_.fields.box(index).intersect(level_box), level.tile))
    return len(tiles)


def memory(field_name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes. ru_maxrss would count its parent's too."""
    status = Path("/proc/self/status")
    if not status.exists():
        import psutil

        return int(psutil.Process().memory_info().rss)
    line = next(line for line in status.read_text().splitlines() if line.startswith(field_name))
    return int(line.split()[1]) * 1024


def child(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a hundred tiles, under 45 s")
    parser.add_argument("--form", choices=FORMS, help="one runtime and precision; all if not given")
    parser.add_argument("--kind", choices=KINDS, help="one kind of scan; both if not given")
    parser.add_argument("--slide", metavar="FILE", help="a slide that an earlier run painted to this file")
    parser.add_argument("--bundles", metavar="DIR", help="a folder that keeps the bundles for later runs")
    parser.add_argument("--paint", metavar="FILE", help="paint the slide to a file and stop")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.paint:
        paint(Path(options.paint), plan.tissue)
        return
    if options.one:
        keep_freed_memory()  # as the command line does at its start
        kind, form, *paths = options.one
        slide_path, bundle_folder, out = (Path(path) for path in paths)
        print(json.dumps(one(kind, form, slide_path, bundle_folder, out, plan)))
        return
    forms = [options.form] if options.form else ["torch"] if options.quick else list(FORMS)
    kinds = [options.kind] if options.kind else KINDS
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or str(Path(folder) / "slide.tif")
        bundles = options.bundles or folder
        quick = ["--quick"] if options.quick else []
        if not options.slide:
            child(*quick, "--paint", slide)
        results, ratios = [], {}
        for kind in kinds:
            for form in forms:
                *lines, last = child(*quick, "--one", kind, form, slide, bundles, folder).splitlines()
                print("\n".join(lines), flush=True)
                results.append(json.loads(last))
                name = f"efficiency_{kind}" if form == "torch" else f"efficiency_{kind}_{form}"
                ratios[name] = results[-1]["efficiency"]
    ratios["decodes_per_tile"] = max(result["decodes"] for result in results)
    ratios["memory_of_ceiling"] = max(result["memory"] for result in results)
    report("scan", ratios)


if __name__ == "__main__":
    main()
