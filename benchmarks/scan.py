"""Scan efficiency: how much of what the machine can do a scan turns into reading and computing.

Regions of a generated slide of 28,672 px a side, most of it tissue, are scanned (a) by a ResNet-18 of 224-px
tiles and (b) by the small dense net at stride 32; in int8, (b) scans the whole slide. Each scan runs with
torch in float32, with OpenVINO in float32 (keys that end in `_openvino`) and with OpenVINO in int8 (`_int8`);
`--form` selects one of them. In the same process, in turns with the scan, the same fields are read by the
same loader without a model, and the model runs alone on as many batches of pixels in memory, in the same
replicas.

    on a CPU   efficiency = (CPU seconds of reading alone + of the model alone) / (cores × wall − stolen)
    on a GPU   efficiency = time of the slower of reading and model, each alone / wall

The wall is that of the case, from opening it to its written result: finding tissue counts as a loss, the one
measurement of precisions before the first case does not. Seconds that a hypervisor took from the cores for
other machines during the case are not counted, since CPU seconds do not contain them either.

Each round measures the scan and its parts one after the other; every second round begins with the parts. The
efficiency is the median of the rounds. A scan before the first round, in which the process loads modules and
uses memory for the first time, is not counted; how much longer it took is printed. So is the efficiency by
the least times of all rounds, which may come from different moments of a machine whose speed changes.

With `--quick`, a small and a larger region of a smaller slide are scanned, and the efficiency of a full scan
is extrapolated from what the further fields of the larger region take. Both kinds of scan run in one process,
and only torch is measured.

`decodes_per_tile` is the compressed tiles that the scan decoded over the distinct ones under its fields, all
of the scanned level: what finding the tissue decodes (of a smaller level) is counted on a slide opened for
the purpose, and taken off. The worse of the two scans counts.

    python benchmarks/scan.py [--quick] [--form FORM] [--kind KIND] [--slide FILE] [--bundles DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from lobule.allocator import keep_freed_memory
from lobule.geometry import Box
from measure import report
from scan_parts import TimeSpent, compute_all, opened, read_all, sample_batches, tiles_under, time_spent_by
from scan_subjects import make_bundle, paint, quantised

KINDS = ("tiles", "dense")
FORMS = {"torch": ("torch", "float32"), "openvino": ("openvino", "float32"), "int8": ("openvino", "int8")}
"""The runtime and precision of each scan, by the name of the option `--form`."""
FEW_BATCHES = 4
"""Batches that the model computes in addition with `--quick`; their seconds are subtracted."""
MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How much is scanned."""

    side: int
    tissue: float
    rounds: dict[str, int]
    """Rounds of each scan. One more scan comes before the first round."""
    boxes: dict[str, Box | None]
    """The region of each scan in level-0 pixels; None is the whole slide."""
    int8_boxes: dict[str, Box | None] = field(default_factory=dict)
    """Other regions for int8. With those above, an int8 scan of dense fields would take only 9 s."""
    small_boxes: dict[str, Box] = field(default_factory=dict)
    """A region of each scan that is scanned in addition, before the first round: a batch for each of two
    cores."""


FULL = Plan(
    28_672, 0.7, {"tiles": 3, "dense": 4},
    {"tiles": Box(6_720, 8_736, 11_648, 8_064), "dense": Box(3_584, 3_584, 19_712, 19_712)},
    int8_boxes={"dense": None},
)  # fmt: skip
QUICK = Plan(
    6_144, 0.6, {"tiles": 1, "dense": 1},
    {"tiles": Box(1_344, 2_240, 3_584, 1_568), "dense": None},
    small_boxes={"tiles": Box(2_240, 2_240, 896, 896), "dense": Box(2_240, 2_688, 2_688, 896)},
)  # fmt: skip
FULL_FIELDS = {"tiles": 1_872, "dense": 121}
"""Fields of the full scans with torch, to which `--quick` extrapolates."""


@dataclass(frozen=True)
class Scanned:
    """What one scan took, from opening its case to the written result."""

    fields: int
    wall: float
    cpu: float
    capacity: float
    """Seconds of all cores, without those that a hypervisor took."""
    model: float
    """Seconds in the model, summed over replicas."""
    tiles_decoded: int


@dataclass(frozen=True)
class PartsAlone:
    """What reading and the model take alone, and the sizes of their work."""

    opening_wall: float
    """Seconds to open the case and find its tissue."""
    tiles_for_tissue: int
    """Compressed tiles that were decoded for it."""
    reading: TimeSpent
    batches: int
    fields_per_batch: int
    model: TimeSpent
    model_on_few_batches: TimeSpent | None
    """What the model takes for `FEW_BATCHES` batches, with `--quick`."""

    @property
    def cpu(self) -> float:
        """CPU seconds of reading and of the model."""
        return self.reading.cpu + self.model.cpu


@dataclass(frozen=True)
class Round:
    """A scan, and reading and the model alone, measured one after the other."""

    scan: Scanned
    alone: PartsAlone

    def efficiency(self, on_gpu: bool, small_scan: Scanned | None, fields_of_full_scan: int) -> float:
        """The efficiency of this scan, or with a smaller one that of a full scan, by extrapolation."""
        scan, alone = self.scan, self.alone
        if on_gpu:
            return max(alone.reading.wall, alone.model.wall) / scan.wall
        if small_scan is None or alone.model_on_few_batches is None:
            return alone.cpu / scan.capacity
        further_fields = (alone.batches - FEW_BATCHES) * alone.fields_per_batch
        model_cpu_per_field = (alone.model.cpu - alone.model_on_few_batches.cpu) / further_fields
        cpu_per_field = alone.reading.cpu / scan.fields + model_cpu_per_field
        return extrapolated(small_scan, scan, cpu_per_field, fields_of_full_scan)


def measure_kind(
    kind: str, form: str, slide: Path, bundles: Path, folder: Path, plan: Plan
) -> dict[str, float]:
    """Measure one kind of scan.

    In the full mode, each kind has its own child process, so that its peak memory is its own. With `--quick`,
    both kinds share one process, and the higher peak is that of the dense scan, which is the first one.
    """
    from lobule.bundles import read_bundle
    from lobule.cohort import Case, Cohort
    from lobule.methods import load
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.device import available_cores
    from lobule.scanning.scan import Machine, scan

    bundle = read_bundle(make_bundle(kind, bundles))
    if form == "int8":
        bundle = quantised(bundle, slide, bundles)
    runtime, precision = FORMS[form]
    predictor, machine, options = load(bundle), Machine(runtime=runtime, precision=precision), ScanOptions()
    engines = noting_engine(predictor.model)
    times_at_opening = noting_opening(predictor)
    identity = {"method": bundle.method, "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
    cores = available_cores()
    cases: list[Case] = []

    def scanned(name: str, box: Box | None) -> Scanned:
        # All cases are in one results folder, so that only the first scan measures memory layouts.
        cases.append(Case(name, name, "slide" if box is None else "region", str(slide), l0_box=box))
        out, files = folder / f"{kind}-{form}", Cohort(tuple(cases))
        ended = scan(predictor, identity, files, out, options, machine, int8_folder=bundle.int8_folder)
        stolen, cpu = (now - at for now, at in zip(used_so_far(), times_at_opening[-1], strict=True))
        if ended.counts != {"complete": len(cases)}:
            raise RuntimeError(f"the scan ended with {ended.counts}: {ended.failed}")
        wall = json.loads((out / "cases" / name / "run.json").read_text())["seconds"]
        counters = ended.counters
        return Scanned(
            counters.fields_done, wall, cpu, cores * wall - stolen, counters.model_s, counters.tiles_decoded
        )

    box = plan.boxes[kind]
    if form == "int8":
        box = plan.int8_boxes.get(kind, box)
    case = Case("slide", "patient", "slide" if box is None else "region", str(slide), l0_box=box)
    slide.read_bytes()  # into the page cache, for all rounds alike
    before = memory("VmRSS")
    distinct_tiles = 0

    def measured_alone(engine: Any) -> PartsAlone:
        nonlocal distinct_tiles
        began = time.perf_counter()
        with opened(predictor, case, engine, options, machine) as (images, pass_, tiles_for_tissue):
            opening_wall = time.perf_counter() - began
            size = pass_.batch or engine.batch
            readers = machine.readers or available_cores()
            reading = time_spent_by(lambda: read_all(pass_, images, size, readers))
            in_memory, batches = sample_batches(pass_, images, size)
            distinct_tiles = tiles_under(images["slide"], pass_)
        if kind in plan.small_boxes and engine.device == "cpu" and batches <= FEW_BATCHES:
            raise RuntimeError(
                f"the {kind} scan has {batches} batches, and --quick needs more than {FEW_BATCHES}; "
                "leave out --quick or use fewer cores"
            )
        computing = partial(compute_all, predictor.model, engine, pass_.key, in_memory)
        if kind in plan.small_boxes:  # New threads use their memory for the first time.
            computing(FEW_BATCHES)
        model = time_spent_by(partial(computing, batches))
        on_few = time_spent_by(partial(computing, FEW_BATCHES)) if kind in plan.small_boxes else None
        return PartsAlone(opening_wall, tiles_for_tissue, reading, batches, size, model, on_few)

    rounds: list[Round] = []
    first_scan = scanned("0", box)
    peak = memory("VmHWM")
    small_scan = scanned("small", plan.small_boxes[kind]) if kind in plan.small_boxes else None
    for turn in range(1, 1 + plan.rounds[kind]):
        if turn % 2:
            scan_of_round = scanned(str(turn), box)
            rounds.append(Round(scan_of_round, measured_alone(engines[-1])))
        else:
            alone = measured_alone(engines[-1])
            rounds.append(Round(scanned(str(turn), box), alone))
    engine = engines[-1]
    on_gpu = engine.device != "cpu"
    efficiencies = [one_round.efficiency(on_gpu, small_scan, FULL_FIELDS[kind]) for one_round in rounds]
    alone = rounds[0].alone
    sizes = f"{first_scan.fields} fields in {alone.batches} batches of {alone.fields_per_batch}"
    print(f"{kind}, {form}: {sizes}, {engine.replicas} replicas")
    print(f"  {engine.runtime} {engine.precision} on {engine.device}")
    print(f"  efficiency of each round: {', '.join(f'{value:.3f}' for value in efficiencies)}")
    if not on_gpu and small_scan is None:
        print(f"  efficiency of the least times of all rounds: {efficiency_of_least_times(rounds):.3f}")
    print_medians(rounds, first_scan, cores, engine.replicas)
    decoded = first_scan.tiles_decoded - alone.tiles_for_tissue
    print(f"  {decoded} compressed tiles decoded, {distinct_tiles} lie under the fields")
    print(f"  peak {peak / MIB:.0f} MiB, {(peak - before) / MIB:.0f} MiB beyond what the scan began with")
    return {
        "efficiency": median(efficiencies),
        "decodes": decoded / distinct_tiles,
        "memory": (peak - before) / machine.max_ram,
    }


def efficiency_of_least_times(rounds: Sequence[Round]) -> float:
    reading = min(one_round.alone.reading.cpu for one_round in rounds)
    model = min(one_round.alone.model.cpu for one_round in rounds)
    return (reading + model) / min(one_round.scan.capacity for one_round in rounds)


def print_medians(rounds: Sequence[Round], first_scan: Scanned, cores: int, replicas: int) -> None:
    """Print where the time of the scans went, as medians of the rounds."""

    def median_of(ratio: Callable[[Scanned, PartsAlone], float]) -> float:
        return median(ratio(one_round.scan, one_round.alone) for one_round in rounds)

    model_rate = median_of(lambda scan, alone: scan.fields / alone.model.wall)
    scan_rate = median_of(lambda scan, alone: scan.fields / scan.wall)
    scan_of_model = median_of(lambda scan, alone: alone.model.wall / scan.wall)
    busy = median_of(lambda scan, alone: alone.model.cpu / (cores * alone.model.wall))
    reading = median_of(lambda scan, alone: alone.reading.cpu / alone.cpu)
    used = median_of(lambda scan, alone: scan.cpu / alone.cpu)
    model_in_scan = median_of(lambda scan, alone: scan.model / (replicas * alone.model.wall))
    wall = median_of(lambda scan, alone: scan.wall)
    opening = median_of(lambda scan, alone: alone.opening_wall / scan.wall)
    stolen = median_of(lambda scan, alone: 1 - scan.capacity / (cores * scan.wall))
    rates = f"{model_rate:.3g} fields/s, the scan {scan_rate:.3g}"
    print("  medians of the rounds:")
    print(f"    the model alone computes {rates}: {scan_of_model:.2f} of it")
    print(f"    the model alone kept the cores {busy:.0%} busy")
    print(f"    reading is {reading:.1%} of the CPU time of reading and model alone")
    print(f"    the case used {used:.2f} of that CPU time")
    print(f"    in the scan the model took {model_in_scan:.2f} of its time alone")
    print(f"    opening and finding tissue take {opening:.1%} of the wall of {wall:.1f} s")
    print(f"    the scan before the first round, not counted, took {first_scan.wall / wall:.2f} of it")
    print(f"    a hypervisor took {stolen:.1%} of the cores' time in the scan")


def extrapolated(small: Scanned, large: Scanned, cpu_per_field: float, fields: int) -> float:
    """The efficiency of a scan of this many fields, by the seconds that further fields take."""
    per_field = (large.capacity - small.capacity) / (large.fields - small.fields)
    return fields * cpu_per_field / (small.capacity + (fields - small.fields) * per_field)


def used_so_far() -> tuple[float, float]:
    """Seconds that a hypervisor took from all cores (0 if unknown), and CPU seconds of this process."""
    try:
        stolen = int(Path("/proc/stat").read_text().splitlines()[0].split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        stolen = 0.0
    return stolen, time.process_time()


def noting_opening(predictor: Any) -> list[tuple[float, float]]:
    """The times of `used_so_far` when each case is opened."""
    times: list[tuple[float, float]] = []
    original_images = predictor.images

    def noting(*arguments: Any) -> Any:
        times.append(used_so_far())
        return original_images(*arguments)

    predictor.images = noting
    return times


def noting_engine(model: Any) -> list[Any]:
    """Every engine settings that the scanner places the model with, the last being what it runs with."""
    engines: list[Any] = []
    original_place = model.move_to_device

    def noting(engine: Any, options: Any) -> None:
        engines.append(engine)
        original_place(engine, options)

    model.move_to_device = noting
    return engines


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
    parser.add_argument("--quick", action="store_true", help="a smaller slide, under 45 s")
    parser.add_argument("--form", choices=FORMS, help="one runtime and precision; all if not given")
    parser.add_argument("--kind", choices=KINDS, help="one kind of scan; both if not given")
    parser.add_argument("--slide", metavar="FILE", help="a slide that an earlier run painted to this file")
    parser.add_argument("--bundles", metavar="DIR", help="a folder that keeps the bundles for later runs")
    parser.add_argument("--paint", metavar="FILE", help="paint the slide to a file and stop")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.paint:
        paint(Path(options.paint), plan.side, plan.tissue)
        return
    if options.one:
        keep_freed_memory()  # as the command line does at its start
        kinds_of_process, form, *paths = options.one
        slide_path, bundle_folder, out = (Path(path) for path in paths)
        for kind in kinds_of_process.split(","):
            print(json.dumps(measure_kind(kind, form, slide_path, bundle_folder, out, plan)))
        return
    forms = [options.form] if options.form else ["torch"] if options.quick else list(FORMS)
    kinds = [options.kind] if options.kind else KINDS
    if options.quick and not options.form:
        print("left out: the forms openvino and int8, which --form measures")
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or str(Path(folder) / "slide.tif")
        bundles = options.bundles or folder
        if not options.slide:
            paint(Path(slide), plan.side, plan.tissue)
        quick = ["--quick"] if options.quick else []
        # In the full mode, every scan has its own process, so that its peak memory is its own. With --quick,
        # the dense scan, which needs more memory, is the first one.
        processes = [",".join(sorted(kinds))] if options.quick else kinds
        results, ratios = [], {}
        for kinds_of_process in processes:
            for form in forms:
                lines = child(*quick, "--one", kinds_of_process, form, slide, bundles, folder).splitlines()
                print("\n".join(line for line in lines if not line.startswith("{")), flush=True)
                of_process = [json.loads(line) for line in lines if line.startswith("{")]
                for kind, result in zip(kinds_of_process.split(","), of_process, strict=True):
                    name = f"efficiency_{kind}" if form == "torch" else f"efficiency_{kind}_{form}"
                    ratios[name] = result["efficiency"]
                results += of_process
    ratios["decodes_per_tile"] = max(result["decodes"] for result in results)
    ratios["memory_of_ceiling"] = max(result["memory"] for result in results)
    report("scan", ratios)


if __name__ == "__main__":
    main()
