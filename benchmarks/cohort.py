"""Scans of many cases: the gain of a second worker, the cost of Ray, and the cost of a case itself.

    two_workers      cases per second of two Ray workers, each bound to a core, over those of one such worker;
                     a worker that is not bound uses 1.2 cores while the other core is idle
    ray_over_local   seconds per case of one Ray worker with two cores, over those of the plain loop
    case_ms          milliseconds per case of the plain loop on slides of 64 px: the slope between a small
                     and a large number of cases, minus that of writing the same files durably; the median of
                     some rounds, because the speed of a disk changes from minute to minute

A trivial case goes the whole way: opening, reading, one field of 235 px through the network, map, findings
and result. All of this counts in `case_ms` except for the durable writes.

Rates are measured after the first cases, when every worker is warm, and before the last ones, when workers
wait for each other. The model is the dense net `tiny`. `--quick` scans fewer and smaller cases once.

    python benchmarks/cohort.py [--quick] [--only KEY]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile

from lobule.cluster.scan import scan_on_ray
from lobule.cluster.session import ClusterOptions, ray_session
from lobule.cluster.sources import BundleSource
from lobule.cohort import Case, Cohort
from lobule.files import write_bytes
from lobule.methods.scannet import Config, save
from lobule.nets.backbones import BACKBONES
from lobule.nets.scaling import PLAIN_SCALING
from lobule.scanning.contract import Predictor, ScanOptions
from lobule.scanning.scan import Machine, scan
from measure import report

KEYS = ("two_workers", "ray_over_local", "case_ms")
FIRST, WARM_UP, LAST = 2, 10, 4
"""The first scan has 2 cases. Counting begins after 10 cases, four per worker. The last 4 are not counted."""
OPTIONS = ScanOptions(tissue=None)
MACHINE = Machine(device="cpu", precision="float32", channels_last=True, batch=2, cells=32)


@dataclass(frozen=True)
class Plan:
    """The size of the benchmark."""

    cases: int
    side_px: int
    rounds: int
    trivial: tuple[int, int]
    trivial_rounds: int


FULL = Plan(cases=40, side_px=2048, rounds=2, trivial=(200, 1200), trivial_rounds=3)
QUICK = Plan(cases=30, side_px=1024, rounds=1, trivial=(20, 80), trivial_rounds=1)
QUICK_KEYS = ("two_workers", "case_ms")


@dataclass(frozen=True)
class BoundSource(BundleSource):
    """A bundle whose worker is bound to a core that no other worker of the scan uses."""

    cores: str = ""
    """A folder with a file for each core that is taken."""

    def load(self) -> Predictor:
        core = next((core for core in sorted(os.sched_getaffinity(0)) if self._take(core)), None)
        if core is None:
            raise RuntimeError(
                "no core is left for this worker, because it replaces another one; the rate would be wrong"
            )
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
            with contextlib.suppress(ProcessLookupError):  # The thread may have ended since.
                os.sched_setaffinity(int(thread), {core})
        return super().load()

    def _take(self, core: int) -> bool:
        try:
            Path(self.cores, str(core)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def slides(folder: Path, count: int, side_px: int, name: str) -> Cohort:
    """Write slides of noise without compression, so that reading them costs little."""
    cases = []
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{name}{index}.tif"
        pixels = rng.integers(0, 256, (side_px, side_px, 3), np.uint8)
        tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="zlib",
                         compressionargs={"level": 1})  # fmt: skip
        cases.append(Case(f"{name}{index}", f"{name}{index}", "slide", str(path), mpp=0.5))
    return Cohort(tuple(cases))


def bundle_in(folder: Path) -> BundleSource:
    """Write an untrained bundle; scores do not matter here."""
    import torch

    from lobule.bundles import read_bundle

    torch.manual_seed(0)
    config = Config(trunk="tiny", mpp=0.5)
    save(folder / "bundle", config, BACKBONES["tiny"](len(config.classes)).eval(), PLAIN_SCALING)
    opened = read_bundle(folder / "bundle")
    summary = {"method": opened.method, "fingerprint": opened.fingerprint, "classes": list(opened.classes)}
    return BundleSource(str(folder / "bundle"), summary)


def bound(source: BundleSource, out: Path) -> BundleSource:
    """The source for workers of one scan that are bound to cores, where the system allows it."""
    if not hasattr(os, "sched_setaffinity"):
        return source
    cores = out.with_name(f"{out.name} cores")
    cores.mkdir()
    return BoundSource(source.path, source.bundle, cores=str(cores))


def seconds_per_case(out: Path) -> float:
    """Seconds per case between the first and the last cases, from the times at which cases ended."""
    ended = sorted(json.loads(path.read_text())["ended"] for path in out.glob("cases/*/run.json"))
    counted = ended[WARM_UP - 1 : -LAST]
    return float((counted[-1] - counted[0]) / (len(counted) - 1))


def local(source: BundleSource, cohort: Cohort, out: Path, cores: int) -> float:
    """Seconds per case of the plain loop."""
    machine = replace(MACHINE, cores=cores, replicas=cores, readers=cores)
    for cases in (Cohort(cohort.cases[:FIRST]), cohort):
        scan(source.load(), source.bundle, cases, out, OPTIONS, machine)
    return seconds_per_case(out)


def on_ray(source: BundleSource, cohort: Cohort, out: Path, workers: int, cores: int) -> float:
    """Seconds per case of workers on Ray."""
    machine = replace(MACHINE, replicas=cores, readers=cores)
    # The first scan only chooses the settings, for which workers need not start.
    scan(
        source.load(),
        source.bundle,
        Cohort(cohort.cases[:FIRST]),
        out,
        OPTIONS,
        replace(machine, cores=cores),
    )
    for_workers = bound(source, out) if cores == 1 else source
    options = ClusterOptions(workers=workers, worker_cpus=cores)
    scan_on_ray(for_workers, cohort, out, OPTIONS, machine, options)
    return seconds_per_case(out)


def best_times(plan: Plan, folder: Path, keys: Sequence[str]) -> dict[str, float]:
    """The ratios of times per case: the best of the rounds of each way of scanning, in turns."""
    source, cohort = bundle_in(folder), slides(folder, plan.cases, plan.side_px, "s")
    scans: dict[str, Callable[[Path], float]] = {}
    if "two_workers" in keys:
        scans["one worker"] = lambda out: on_ray(source, cohort, out, 1, 1)
        scans["two workers"] = lambda out: on_ray(source, cohort, out, 2, 1)
    if "ray_over_local" in keys:
        scans["one worker of two cores"] = lambda out: on_ray(source, cohort, out, 1, 2)
        scans["plain loop of two cores"] = lambda out: local(source, cohort, out, 2)
    best = dict.fromkeys(scans, float("inf"))
    with ray_session(ClusterOptions(workers=2, worker_cpus=1)):
        for number in range(plan.rounds):
            for name, run in scans.items():
                best[name] = min(best[name], run(folder / f"{name} {number}"))
    for name, seconds in best.items():
        print(f"{name:26} {1 / seconds:8.2f} cases/s")
    pairs = {
        "two_workers": ("one worker", "two workers"),
        "ray_over_local": ("one worker of two cores", "plain loop of two cores"),
    }
    return {key: best[over] / best[under] for key, (over, under) in pairs.items() if key in keys}


def trivial_seconds(folder: Path, source: BundleSource, cohort: Cohort, count: int) -> tuple[float, float]:
    """Seconds of scanning `count` trivial cases, and of writing the same files durably."""
    out = folder / f"trivial {count}"
    machine = replace(MACHINE, cells=2, batch=1, cores=2, replicas=2, readers=2)
    began = time.perf_counter()
    scan(source.load(), source.bundle, Cohort(cohort.cases[:count]), out, OPTIONS, machine)
    scanning = time.perf_counter() - began
    files = [(path, path.read_bytes()) for path in sorted(out.glob("cases/**/*")) if path.is_file()]
    copies = folder / f"writes {count}"
    for path, _ in files:
        (copies / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for path, data in files:
        write_bytes(copies / path.relative_to(out), data)
    return scanning, time.perf_counter() - began


def case_ms(plan: Plan, folder: Path) -> float:
    """Milliseconds per case besides its pixels and the durable writes."""
    source, cohort = bundle_in(folder), slides(folder, max(plan.trivial), 64, "t")
    trivial_seconds(folder / "first", source, cohort, 10)
    cases, differences = plan.trivial[1] - plan.trivial[0], []
    for number in range(plan.trivial_rounds):
        (few, few_writes), (many, many_writes) = (
            trivial_seconds(folder / str(number), source, cohort, count) for count in plan.trivial
        )
        total, writes = 1000 * (many - few) / cases, 1000 * (many_writes - few_writes) / cases
        print(
            f"trivial case               {total:8.2f} ms, of which durable writes {writes:.2f} ms", flush=True
        )
        differences.append(total - writes)
    return statistics.median(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cases and keys, under 45 s")
    parser.add_argument("--only", choices=KEYS, help="measure one key")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    keys: Sequence[str] = KEYS if options.only is None else (options.only,)
    if options.quick and options.only is None:
        keys = QUICK_KEYS  # Each of the four scans of the other keys starts workers, which takes 5 s.
        print(f"left out: {', '.join(sorted(set(KEYS) - set(keys)))}, which --only measures")
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="lobule-cohort-") as name:
        if "case_ms" in keys:
            (Path(name) / "trivial").mkdir()
            ratios["case_ms"] = case_ms(plan, Path(name) / "trivial")
        if set(keys) - {"case_ms"}:
            ratios |= best_times(plan, Path(name), keys)
    report("cohort", ratios)


if __name__ == "__main__":
    main()
