"""Extraction of features, compared with its two steps and with a plain OpenSlide loop over the same tiles.

The input is a generated slide with tiles of 224 px; the encoder is a ResNet-18 with seeded weights. One
process alternates between the extraction in float32 and in bfloat16, only its reading, only its model (with
pixels in memory), and a plain loop. The plain loop calls OpenSlide's `read_region` in a DataLoader and uses
torchvision's model unchanged, with no worker or with one worker per core, whichever is faster.

    efficiency        on a CPU (CPU seconds of only reading + of only the model) / (cores × wall time of the
                      case); on a GPU the slower of the two over the wall time
    of_bare_model     tiles/s of the whole extraction over those of only the model
    over_plain_fp32   seconds of the plain loop over those of the extraction, both in float32
    over_plain_bf16   the same with the extraction in bfloat16, which a CPU without AMX emulates
    memory_growth     peak memory of extracting a slide four times as large, over that of this one
    vit_of_bare_model tiles/s of the whole extraction with ViT-S/16 in float32 over those of its network: only
                      scaled tensors in memory, no slide and no resizing, in the faster of two ways: one batch
                      after the other with all cores, or one batch per core at once
    two_in_one_pass   seconds of extracting with the ResNet-18 and ViT-S/16 in one pass, over the sum of the
                      seconds of only their models
    token_memory      memory_growth for ViT-S/16 with stored tokens (int8), and its tokens read block by block

Everything runs with torch. The time of the extraction includes tissue detection and writing the feature file;
that of the plain loop does not. The relative difference of the features is printed.

`--quick` measures a slide of few tiles and one of more, and compares the differences of their times. So it
leaves out what a slide takes in addition to its tiles, which is little in the full mode. It does not measure
memory, nor bfloat16 on a CPU, which take too long. The transformer is measured by `--quick --only KEY`.

    python benchmarks/features.py [--quick] [--only KEY]
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measure import Times, arguments, machine, peak_bytes, report
from plain_loop import run_plain_loop, tiles_inside
from scan_parts import TimeSpent, compute_all, in_threads, opened, read_all, sample_batches, time_spent_by

TILE, MPP = 224, 0.5


@dataclass(frozen=True)
class NoOutput:
    """Stands for the folder of an encoder in a predictor that only reads or only computes."""

    dim: int
    token_bytes: int = 0

    def is_up_to_date(self, *_: Any) -> bool:
        return False


@dataclass(frozen=True)
class Size:
    """A generated slide."""

    side: int
    tissue: float


@dataclass(frozen=True)
class Plan:
    """The slides and number of repetitions."""

    slide: Size
    rounds: int
    workers: tuple[int, ...]
    """Worker counts of the plain loop's DataLoader; the fastest is used."""
    slide_of_transformers: Size
    rounds_of_transformers: int
    slide_of_tokens: Size
    """A slide with more tokens than a block in memory."""
    few_tiles: Size | None = None
    """The slide whose times are subtracted, with `--quick`."""


def full() -> Plan:
    from lobule.scanning.device import available_cores

    return Plan(Size(8192, 0.5), 3, (0, available_cores()), Size(3584, 0.5), 2, Size(5120, 0.5))


QUICK = Plan(Size(2368, 0.9), 1, (0,), Size(1728, 0.6), 1, Size(1120, 0.6), Size(992, 0.5))
"""Slides of 96, 48 and 16 tiles, which fill batches of 8 on two cores."""


def slide_in(folder: Path, size: Size) -> Path:
    """The path of a slide, which is generated unless it exists."""
    path = folder / f"{size.side}-{size.tissue}.tif"
    if not path.exists():
        paint_slide(path, size.side, size.tissue)
    return path


def paint_slide(path: Path, width: int, tissue: float, height: int | None = None) -> None:
    from lobule.phantoms.slides import SlidePhantom, write_slide

    height = height or width
    write_slide(SlidePhantom(seed=13, width=width, height=height, mpp=MPP, tissue=tissue, sections=1), path)


CNN, VIT = "resnet18", "kaiko-vits16"
"""The second is a ViT-S/16."""


def make_encoder(name: str = CNN) -> Any:
    """A new copy of an encoder with seeded random weights; the timing does not depend on the weights."""
    return copy.deepcopy(random_encoder(name))


@cache
def random_encoder(name: str) -> Any:
    from lobule.encoders.load import open_encoder

    return open_encoder(name, "random")


def time_extraction(
    slide: Path, out: Path, precision: str, names: Sequence[str] = (CNN,), tokens: Any = "none"
) -> float:
    """Seconds of extracting one case, from opening the slide to the written features."""
    from lobule.cohort import Case, Cohort
    from lobule.methods.extraction import Extraction, extract
    from lobule.scanning.scan import Machine
    from lobule.scanning.tile_features import Tiling

    cohort = Cohort((Case("slide", "patient", "slide", str(slide)),))
    extraction = Extraction(Tiling(MPP, TILE, TILE), "float32", keep_encoder=False, tokens=tokens)
    encoders = [make_encoder(name) for name in names]
    fixed_machine = Machine(runtime="torch", precision=precision, channels_last=True)
    scan_report = extract(encoders, cohort, out, extraction, machine=fixed_machine)
    if scan_report.counts != {"complete": 1}:
        raise RuntimeError(f"the extraction ended with {scan_report.counts}: {scan_report.failed}")
    return float(json.loads((out / "scan" / "cases" / "slide" / "run.json").read_text())["seconds"])


def warm_up(folder: Path, plan: Plan, name: str) -> None:
    """Extract once from the smallest slide, because the first use takes longer."""
    time_extraction(
        slide_in(folder, plan.few_tiles or plan.slide_of_transformers),
        folder / f"first-{name}",
        "float32",
        (name,),
    )


def read_features(out: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from lobule.cohort import Case
    from lobule.features import open_features

    file = open_features(out).find(Case("slide", "patient", "slide", None))
    return file.l0_coords(), file.read(slice(0, file.count))


def times_alone(
    slide: Path, engine: Any, tiles: int | None = None, name: str = CNN
) -> tuple[TimeSpent, TimeSpent]:
    """Time only the reading and only the model, each done as in the extraction."""
    from lobule.cohort import Case
    from lobule.methods.extraction import ExtractionPredictor
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.device import available_cores
    from lobule.scanning.scan import Machine
    from lobule.scanning.tile_features import TileEncoder, Tiling

    model = TileEncoder(make_encoder(name), Tiling(MPP, TILE, TILE))
    outputs: Any = [NoOutput(model.encoder.dim)]
    predictor = ExtractionPredictor(model, outputs, Path("nowhere"))
    options, case = ScanOptions(), Case("slide", "patient", "slide", str(slide))
    predictor.model.move_to_device(engine, options)
    with opened(predictor, case, engine, options, Machine()) as (images, pass_, _):
        size = engine.batch
        read = time_spent_by(lambda: read_all(pass_, images, size, available_cores()))
        in_memory, batches = sample_batches(pass_, images, size)
        if tiles is not None and len(pass_.fields) != tiles:
            raise RuntimeError(f"{len(pass_.fields)} tiles read, {tiles} extracted")
    return read, time_spent_by(lambda: compute_all(predictor.model, engine, pass_.key, in_memory, batches))


def engine_of(out: Path) -> Any:
    """The engine settings of an extraction."""
    from lobule.files import read_json
    from lobule.scanning.contract import EngineSettings
    from lobule.scanning.device import available_cores, choose_device, replicas_for

    device = choose_device()
    settings = read_json(out / "scan" / "scan.json")["engine"]
    return EngineSettings(
        **{**settings, "device": device, "replicas": replicas_for(device, available_cores())[0]}
    )


def network_seconds(engine: Any, name: str, tiles: int) -> float:
    """Seconds of only the network of an encoder on as many scaled tiles, in the faster of two ways.

    Which of the two is faster is found out with a few of the tiles.
    """
    import torch

    network = make_encoder(name).for_inference().to(engine.device)
    batch = torch.rand(engine.batch, 3, TILE, TILE, device=engine.device)
    cores = engine.replicas * engine.replica_threads
    full_batches, rest = divmod(tiles, engine.batch)
    sizes = [engine.batch] * full_batches + [rest] * (rest > 0)

    def seconds(replicas: int, sizes: Sequence[int]) -> float:
        waiting = deque(sizes)

        def replica() -> None:
            torch.set_num_threads(cores // replicas)
            with contextlib.suppress(IndexError), torch.inference_mode():
                while True:
                    network(batch[: waiting.popleft()]).float().cpu()

        return time_spent_by(lambda: in_threads(replicas, replica)).wall

    few = sizes[: 2 * engine.replicas]
    return seconds(min((1, engine.replicas), key=lambda replicas: seconds(replicas, few)), sizes)


def transformer_times(slide: Path, folder: Path, rounds: int) -> Times:
    """Measure ViT-S/16, both encoders in one pass, and only their models."""
    times = Times()
    for repeat in range(rounds):
        for kind, names in (("vit", (VIT,)), ("both", (CNN, VIT))):
            out = folder / f"{slide.stem}-{kind}-{repeat}"
            times.add(kind, time_extraction(slide, out, "float32", names))
        engine = engine_of(folder / f"{slide.stem}-vit-{repeat}")
        times.count = len(read_features(folder / f"{slide.stem}-vit-{repeat}")[0])
        times.add("network", network_seconds(engine, VIT, times.count))
        for name in (CNN, VIT):
            times.add(name, times_alone(slide, engine, times.count, name)[1].wall)
    return times


def transformer_ratios(folder: Path, plan: Plan) -> dict[str, float]:
    """Compare ViT-S/16, and both encoders in one pass, with only their models."""
    times = transformer_times(
        slide_in(folder, plan.slide_of_transformers), folder, plan.rounds_of_transformers
    )
    if plan.few_tiles is not None:
        times = times.without(transformer_times(slide_in(folder, plan.few_tiles), folder, 1))
    seconds = times.seconds
    print(
        f"{times.count} tiles in seconds: ViT-S/16 {seconds['vit']:.2f}, its network alone "
        f"{seconds['network']:.2f}, its model {seconds[VIT]:.2f}; both {seconds['both']:.2f}, "
        f"ResNet-18 {seconds[CNN]:.2f}"
    )
    return {
        "vit_of_bare_model": seconds["network"] / seconds["vit"],
        "two_in_one_pass": seconds["both"] / (seconds[CNN] + seconds[VIT]),
    }


def extract_and_read_tokens(slide: Path, out: Path) -> None:
    """Extract tokens of a slide, and read them again block by block."""
    from lobule.cohort import Case
    from lobule.features import open_features

    time_extraction(slide, out, "float32", (VIT,), "int8")
    tokens = open_features(out).find_tokens(Case("slide", "patient", "slide", None))
    total = sum(float(block.sum()) for _, block in tokens.blocks())
    print(f"{tokens.count} tiles with tokens, mean {total / max(1, tokens.count):.3g}")


def difference(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(features - reference) / np.linalg.norm(reference))


def cnn_times(slide: Path, folder: Path, plan: Plan, rounds: int, precisions: Sequence[str]) -> Times:
    """Measure the extraction with ResNet-18, its parts alone, and the plain loop."""
    times, features = Times(), dict[str, Any]()
    for repeat in range(rounds):
        for precision in precisions:
            out = folder / f"{slide.stem}-{precision}-{repeat}"
            times.add(precision, time_extraction(slide, out, precision))
            corners, features[precision] = read_features(out)
        times.count = len(corners)
        engine = engine_of(folder / f"{slide.stem}-float32-{repeat}")
        for name, time_alone in zip(("read", "model"), times_alone(slide, engine, times.count), strict=True):
            times.add(name, time_alone.wall)
            times.add(f"{name}_cpu", time_alone.cpu)
        for workers in plan.workers:
            seconds, features["plain"] = run_plain_loop(make_encoder().net, slide, corners, TILE, workers)
            times.add("plain", seconds)
    inside = tiles_inside(slide, corners, TILE)
    for kind in {"plain", *features} - {"float32"}:
        apart = difference(features["float32"][inside], features[kind][inside])
        print(f"features of {inside.sum()} tiles, float32 against {kind}: {apart:.1e}")
    return times


def cnn_ratios(folder: Path, plan: Plan) -> dict[str, float]:
    """Compare the extraction with ResNet-18 with its parts alone and with the plain loop."""
    from lobule.scanning.device import available_cores, choose_device

    device, cores = choose_device(), available_cores()
    precisions = ("float32",) if plan is QUICK and device == "cpu" else ("float32", "bfloat16")
    times = cnn_times(slide_in(folder, plan.slide), folder, plan, plan.rounds, precisions)
    if plan.few_tiles is not None:
        times = times.without(cnn_times(slide_in(folder, plan.few_tiles), folder, plan, 1, precisions))
    seconds, wall = times.seconds, times.seconds["float32"]
    cpu = seconds["read_cpu"] + seconds["model_cpu"]
    expected_wall = cpu / cores if device == "cpu" else max(seconds["read"], seconds["model"])
    print(f"{times.count} tiles on {device}; reading is {seconds['read_cpu'] / cpu:.1%} of the CPU")
    ratios = {
        "efficiency": expected_wall / wall,
        "of_bare_model": seconds["model"] / wall,
        "over_plain_fp32": seconds["plain"] / wall,
    }
    if "bfloat16" in precisions:
        ratios["over_plain_bf16"] = seconds["plain"] / seconds["bfloat16"]
    return ratios


def memory_ratio(folder: Path, plan: Plan, key: str) -> float:
    """Peak memory for a slide of four times the area and tissue, over that for the usual one."""
    small = plan.slide_of_tokens if key == "token_memory" else plan.slide
    peaks = []
    for size in (small, Size(2 * small.side, small.tissue)):
        path = slide_in(folder, size)
        peaks.append(peak_bytes([__file__, MEMORY[key], str(path), str(folder / f"{key}-{size.side}")]))
    print(f"{key}: peaks of {peaks[0] / 1e6:.0f} and {peaks[1] / 1e6:.0f} MB")
    return peaks[1] / peaks[0]


MEMORY = {"memory_growth": "--extract", "token_memory": "--tokens"}
"""The ratios of memory, and the option of a child process that does the work."""
TRANSFORMERS = ("vit_of_bare_model", "two_in_one_pass")
QUICK_KEYS = ("efficiency", "of_bare_model", "over_plain_fp32")
KEYS = (*QUICK_KEYS, "over_plain_bf16", *TRANSFORMERS, *MEMORY)


def run_child(option: str, slide: Path, out: Path) -> None:
    if option == MEMORY["token_memory"]:
        extract_and_read_tokens(slide, out)
    else:
        time_extraction(slide, out, "float32")


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in MEMORY.values():
        run_child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
        return
    options = arguments(__doc__ or "", keys=KEYS)
    plan, keys = QUICK if options.quick else full(), (options.only,) if options.only else KEYS
    measured = [key for key in keys if key in QUICK_KEYS or options.only] if options.quick else keys
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary_folder:
        folder = Path(temporary_folder)
        if set(measured) - {*TRANSFORMERS, *MEMORY}:
            warm_up(folder, plan, CNN)
            ratios |= cnn_ratios(folder, plan)
        if set(measured) & set(TRANSFORMERS):
            warm_up(folder, plan, VIT)
            ratios |= transformer_ratios(folder, plan)
        print(", ".join(f"{key} {value:.3f}" for key, value in ratios.items()), flush=True)
        if not options.quick:
            ratios |= {key: memory_ratio(folder, plan, key) for key in keys if key in MEMORY}
    if missing := [key for key in keys if key not in ratios]:
        print(f"Not measured with --quick: {', '.join(missing)}")
    print(machine())
    report("features", ratios)


if __name__ == "__main__":
    main()
