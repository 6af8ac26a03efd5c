"""Lobule against TIAToolbox, WSInfer and a plain OpenSlide loop: the same weights, slide, tiles and batch.

(a) A ResNet-18 with seeded weights on 224-px tiles of a generated SVS slide, batch 32. Every runner gets
the list of tiles that Lobule found tissue in (TIAToolbox as a mask, WSInfer as the patches file it would
have made).
(b) A dense map at stride 32 of the small unpadded net, against TIAToolbox with one overlapping patch a
cell; it runs a block of the map, and its time is scaled to the number of cells.

Timed is the inference call alone, after imports, with the slide in the page cache. Finding tissue and
choosing the form of the model are in Lobule's time and not in the others'. Every peer runs in a
separate environment, with no and with two DataLoader workers, of which the faster counts. The peers take
turns, and the least time counts. Memory is the peak of the whole process tree, imports included. A sample of
a tree with workers is the sum of Linux's PSS, in which pages that they share count once. While the tree is
still one process, a sample is its RSS, that is all its pages. PSS is lower while other programs use the same
libraries. Beside one with the same torch, Lobule's figure was a fifth lower.

`lobule fp32` is torch in float32, `lobule` the default (runtime and precision by measurement), and `lobule
int8` scans with a bundle that `lobule weights quantize` wrote beforehand; the seconds of writing it are
printed. The keys end accordingly in `_fp32`, in nothing, and in `_int8`, which needs the extra `quantize`.

    python benchmarks/peers.py --prepare     once: environments under .peers/ (several GiB of downloads)
    python benchmarks/peers.py               all ratios
    python benchmarks/peers.py --small       all ratios from few tiles, to try it
    python benchmarks/peers.py --only NAMES  some contenders, such as "lobule fp32,tiatoolbox 0"; the ratios
                                             use the stored runs of the others, from the same slide and tiles
    python benchmarks/peers.py --quick       `lobule fp32` and the plain loop without workers only, on a
                                             smaller slide, under 45 s
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from measure import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent / ".peers"
ENVIRONMENTS = {
    "tiatoolbox": ("tiatoolbox",),
    "wsinfer": ("wsinfer==0.6.*", "zarr<3", "openslide-python", "openslide-bin"),
    "openvino": ("openvino", "torch", "torchvision", "numpy"),
}
SAMPLE_SECONDS = 0.5
"""Asking for a process's memory costs the process time, too."""


@dataclass(frozen=True)
class Extent:
    """How much is run. Sides are multiples of the 224-px tile and of the file's 256-px tiles."""

    name: str
    side: int
    tissue: float
    most: int | None
    block: int
    """Cells a side of the block that TIAToolbox runs for the dense map."""
    workers: tuple[int, ...]
    rounds: int
    openvino: tuple[int, int]
    """Batches and rounds of the OpenVINO trial."""
    fields: int | None
    """Tiles of the calibration of int8; None leaves int8 out."""


FULL = Extent("full", 17_920, 0.35, None, 40, (0, 2), 2, (6, 5), 200)
SMALL = Extent("small", 2_688, 0.3, None, 8, (0,), 1, (2, 2), 16)
QUICK = Extent("quick", 3_584, 0.5, None, 8, (0,), 1, (2, 2), None)


@dataclass
class Outcome:
    """The runs of one contender: least seconds, largest peak, the last scores."""

    seconds: float = float("inf")
    peak: int = 0
    count: int = 0
    scores: Any = None
    output: dict[str, Any] = field(default_factory=dict)

    @property
    def each(self) -> float:
        return self.seconds / self.count

    @classmethod
    def stored(cls, folder: Path) -> Outcome:
        """Read an outcome that `store` wrote."""
        values = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        scores = np.load(folder / "scores.npy") if (folder / "scores.npy").exists() else None
        return cls(scores=scores, **values)

    def store(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: getattr(self, name) for name in ("seconds", "peak", "count", "output")}
        if self.scores is not None:
            np.save(folder / "scores.npy", self.scores)
        (folder / "outcome.json").write_text(json.dumps(values), encoding="utf-8")

    def add(self, output: dict[str, Any], peak: int, scores: Path) -> None:
        self.seconds, self.peak = min(self.seconds, output["seconds"]), max(self.peak, peak)
        self.count, self.output = output["count"], output
        if scores.exists():
            self.scores = np.load(scores)


# -- environments --------------------------------------------------------------------------------------------


def prepare() -> None:
    """An environment for each peer, left alone where it is already there."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    command = [uv] if uv else [sys.executable, "-m", "uv"]
    for name, packages in ENVIRONMENTS.items():
        if prepared(name):
            continue
        where = ROOT / name
        subprocess.run([*command, "venv", "--quiet", "--clear", "-p", sys.executable, where], check=True)
        subprocess.run(
            [*command, "pip", "install", "-p", str(where / "bin" / "python"), *packages], check=True
        )
        (where / "prepared").touch()


def python_of(name: str) -> Path:
    return ROOT / name / "bin" / "python"


def prepared(name: str) -> bool:
    return (ROOT / name / "prepared").exists()


# -- one run -------------------------------------------------------------------------------------------------


def run(runner: str, python: Path | str, job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], int]:
    """What a runner said in its last line, and the peak memory of its process tree."""
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "PYTHONWARNINGS": "ignore"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    output_file = folder / "said.txt"
    with output_file.open("w") as out, (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [str(python), str(HERE / "peers" / f"run_{runner}.py"), str(path)], stdout=out, stderr=errors,
            env=environment, cwd=folder,
        )  # fmt: skip
        watch = Watch(process.pid)
        status = process.wait()
        peak = watch.end()
    if status:
        tail = (folder / "errors.txt").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{runner} ended with status {status}:\n{tail}")
    *lines, last = output_file.read_text().strip().splitlines()
    if runner == "openvino":
        print("\n".join(lines))
    answer: dict[str, Any] = json.loads(last)
    return answer, peak


class Watch:
    """Samples the memory of a process and its children until told to end."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                continue
            self._peak = max(self._peak, sum(_bytes(one, len(family) > 1) for one in family))


def _bytes(process: Any, has_children: bool) -> int:
    """Return a process's memory: PSS if it has child processes, otherwise RSS."""
    name = "Pss:" if has_children else "Rss:"
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        return 1024 * int(next(line.split()[1] for line in rollup.splitlines() if line.startswith(name)))
    except (OSError, StopIteration):
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it ended meanwhile
        return 0


# -- the comparison ------------------------------------------------------------------------------------------


def contenders(extent: Extent, quick: bool, is_quantised: bool) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, runner, what differs) of each run over the tiles, in the order of a round."""
    contenders_to_run: list[tuple[str, str, dict[str, Any]]] = [
        ("lobule fp32", "lobule", {"precision": "float32", "runtime": "torch"}),
    ]
    if not quick:  # The choice of the default takes longer than a scan of few tiles.
        contenders_to_run.append(("lobule", "lobule", {"precision": "auto", "runtime": "auto"}))
    if is_quantised:
        contenders_to_run.append(("lobule int8", "lobule", {"precision": "int8", "runtime": "openvino"}))
    for workers in extent.workers:
        for peer in ("plain", "tiatoolbox", "wsinfer"):
            if peer == "plain" or (prepared(peer) and not quick):
                contenders_to_run.append((f"{peer} {workers}", peer, {"workers": workers}))
    return contenders_to_run


def compare(extent: Extent, quick: bool, only: list[str]) -> dict[str, float]:
    """Run the contenders and return the ratios; `only` names those to run, and the others are read."""
    root = ROOT / "work" / extent.name
    root.mkdir(parents=True, exist_ok=True)
    finished = root / "outcomes"
    finished.mkdir(exist_ok=True)
    base = {"root": str(root), "side": extent.side, "tissue": extent.tissue, "most": extent.most}
    base |= {"tile": 224, "mpp": 0.5, "batch": 32, "scores": str(root / "scores.npy"), "block": extent.block}
    slide = root / "slide" / "slide.svs"
    prepared_before = root / "prepared.json"
    if only and prepared_before.exists():
        preparation = json.loads(prepared_before.read_text(encoding="utf-8"))
    else:
        for folder in finished.iterdir():
            shutil.rmtree(folder)
        preparation, _ = run(
            "lobule", sys.executable, {**base, "do": "prepare", "fields": extent.fields}, root
        )
        prepared_before.write_text(json.dumps(preparation), encoding="utf-8")
    print(f"{preparation['tiles']} tiles of {extent.side} x {extent.side} px")
    if preparation["quantising"] is not None:
        print(f"quantising the bundle took {preparation['quantising']:.0f} s")
    outcomes: dict[str, Outcome] = {}

    def measured(name: str, runner: str, do: str, options: dict[str, Any]) -> None:
        if only and name not in only:
            return
        for leftover in (root / "out", root / "scores.npy"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        slide.read_bytes()
        python = python_of(runner) if runner in ENVIRONMENTS else sys.executable
        output, peak = run(runner, python, {**base, **options, "do": do, "out": str(root / "out")}, root)
        outcomes.setdefault(name, Outcome()).add(output, peak, root / "scores.npy")
        outcomes[name].store(finished / name)
        print(f"{name}: {output['count']} in {output['seconds']:.1f} s", file=sys.stderr, flush=True)

    for _ in range(extent.rounds):
        for name, runner, options in contenders(extent, quick, preparation["quantising"] is not None):
            measured(name, runner, "tiles", options)
        if prepared("tiatoolbox") and not quick:
            measured("dense lobule", "lobule", "dense", {"precision": "float32", "runtime": "torch"})
            measured("dense tiatoolbox", "tiatoolbox", "dense", {"workers": 0})
    for folder in sorted(finished.iterdir()) if only else ():
        outcomes.setdefault(folder.name, Outcome.stored(folder))
    if "lobule fp32" not in outcomes:
        print("no ratios yet: they need a run of 'lobule fp32'")
        return {}
    ratios = ratios_of(outcomes)
    if prepared("openvino") and not quick and not only:
        batches, rounds = extent.openvino
        output, _ = run(
            "openvino", python_of("openvino"), {"batch": 32, "batches": batches, "rounds": rounds}, root
        )
        ratios |= {f"openvino_over_torch_{cores}": value for cores, value in output["faster"].items()}
    return ratios


def ratios_of(outcomes: dict[str, Outcome]) -> dict[str, float]:
    """Ratios, each peer in the faster of its settings; a line of each outcome is printed."""
    exact = outcomes["lobule fp32"]
    for name, one in outcomes.items():
        line = f"{name:18s} {one.count / one.seconds:8.1f} a second of {one.count}, peak {one.peak >> 20} MiB"
        if one.scores is not None and exact.scores is not None and one is not exact:
            line += f", scores differ by at most {np.abs(one.scores - exact.scores).max():.1e}"
        versions = {key: value for key, value in one.output.items() if key not in ("seconds", "count")}
        print(f"{line} {versions}")
    if exact.scores is not None:
        print(f"scores lie between {exact.scores.min():.3f} and {exact.scores.max():.3f}")
    ratios: dict[str, float] = {}
    for peer in ("tiatoolbox", "wsinfer", "plain"):
        runs = [one for name, one in outcomes.items() if name.startswith(f"{peer} ")]
        if not runs:
            continue
        best = min(runs, key=lambda one: one.each)
        for ours, ending in (("lobule fp32", "_fp32"), ("lobule", ""), ("lobule int8", "_int8")):
            if ours in outcomes:
                ratios[f"over_{peer}{ending}"] = best.each / outcomes[ours].each
        if peer == "tiatoolbox":
            ratios["memory_of_tiatoolbox"] = exact.peak / best.peak
        ratios[f"scores_off_{peer}"] = float(np.abs(best.scores - exact.scores).max())
    if "dense tiatoolbox" in outcomes:
        ratios["dense_over_tiatoolbox"] = outcomes["dense tiatoolbox"].each / outcomes["dense lobule"].each
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", action="store_true", help="make the peers' environments and stop")
    parser.add_argument("--small", action="store_true", help="few tiles, one round")
    parser.add_argument("--quick", action="store_true", help="few tiles, the plain loop only, under 45 s")
    parser.add_argument("--rounds", type=int, help="rounds of the full comparison; two if not given")
    parser.add_argument("--only", default="", metavar="NAMES", help="run these contenders only")
    options = parser.parse_args()
    if options.prepare:
        prepare()
        return
    began = time.perf_counter()
    extent = QUICK if options.quick else SMALL if options.small else FULL
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    ratios = compare(replace(extent, rounds=options.rounds or extent.rounds), options.quick, only)
    missing = [name for name in ENVIRONMENTS if options.quick or not prepared(name)]
    if options.quick:
        print("not measured: Lobule's default, int8 and the dense map")
    if missing:
        print(
            f"not measured: {', '.join(missing)} (their keys are missing). "
            f"{'Leave out --quick, after' if options.quick else 'Run'} python benchmarks/peers.py --prepare"
        )
    print(f"{time.perf_counter() - began:.0f} s in all")
    report("peers", ratios)


if __name__ == "__main__":
    main()
