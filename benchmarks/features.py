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

The time of the extraction includes tissue detection and writing the feature file; that of the plain loop does
not. The relative difference of the features over all tiles is printed.

    python benchmarks/features.py [--quick] [--only KEY]
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measure import arguments, machine, peak_bytes, report
from scan import TimeSpent, batch_rows, compute_all, in_threads, least, opened, read_all, time_spent_by

TILE, MPP = 224, 0.5


@dataclass(frozen=True)
class NoOutput:
    """Stands for the folder of an encoder in a predictor that only reads or only computes."""

    dim: int
    token_bytes: int = 0

    def is_up_to_date(self, *_: Any) -> bool:
        return False


@dataclass(frozen=True)
class Plan:
    """Size of the slides and number of repetitions."""

    side: int
    tissue: float
    rounds: int
    workers: tuple[int, ...]
    """Worker counts of the plain loop's DataLoader; the fastest is used."""
    side_of_transformers: int
    """Side of the slide for the transformer."""
    rounds_of_transformers: int
    side_of_tokens: int
    """Side of a slide with more tokens than a block in memory."""


def full() -> Plan:
    from lobule.scanning.device import available_cores

    return Plan(8192, 0.5, 3, (0, available_cores()), 3584, 2, 5120)


QUICK = Plan(1120, 0.6, 1, (0,), 1120, 1, 1120)


def paint_slide(path: Path, side: int, tissue: float) -> None:
    from lobule.phantoms.slides import SlidePhantom, write_slide

    write_slide(SlidePhantom(seed=13, width=side, height=side, mpp=MPP, tissue=tissue, sections=1), path)


CNN, VIT = "resnet18", "kaiko-vits16"
"""The second is a ViT-S/16."""


def make_encoder(name: str = CNN) -> Any:
    """An encoder with seeded random weights; the timing does not depend on the weights."""
    from lobule.encoders.load import open_encoder

    return open_encoder(name, "random")


def time_extraction(
    slide: Path,
    out: Path,
    precision: str,
    names: Sequence[str] = (CNN,),
    tokens: Any = "none",
    channels_last: bool | None = None,
) -> float:
    """Seconds of extracting one case, from opening the slide to the written features."""
    from lobule.cohort import Case, Cohort
    from lobule.methods.extraction import Extraction, extract
    from lobule.scanning.scan import Machine
    from lobule.scanning.tile_features import Tiling

    cohort = Cohort((Case("slide", "patient", "slide", str(slide)),))
    extraction = Extraction(Tiling(MPP, TILE, TILE), "float32", keep_encoder=False, tokens=tokens)
    encoders = [make_encoder(name) for name in names]
    fixed_machine = Machine(precision=precision, channels_last=channels_last)
    scan_report = extract(encoders, cohort, out, extraction, machine=fixed_machine)
    if scan_report.counts != {"complete": 1}:
        raise RuntimeError(f"the extraction ended with {scan_report.counts}: {scan_report.failed}")
    return float(json.loads((out / "scan" / "cases" / "slide" / "run.json").read_text())["seconds"])


def read_features(out: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from lobule.cohort import Case
    from lobule.features import open_features

    file = open_features(out).find(Case("slide", "patient", "slide", None))
    return file.l0_coords(), file.read(slice(0, file.count))


class PlainTiles:
    """The usual implementation: a dataset in which each item is one call of `read_region`."""

    def __init__(self, slide: str, corners: NDArray[np.int64]) -> None:
        self.slide, self.corners = slide, corners
        self._opened: Any = None

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> Any:
        import openslide
        import torch

        self._opened = self._opened or openslide.OpenSlide(self.slide)
        x, y = (int(value) for value in self.corners[index])
        pixels = np.asarray(self._opened.read_region((x, y), 0, (TILE, TILE)).convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def run_plain_loop(
    slide: Path, corners: NDArray[np.int64], workers: int
) -> tuple[float, NDArray[np.float32]]:
    """Run the plain loop; return its seconds and features."""
    import torch
    from torch.utils.data import DataLoader

    model = make_encoder().net
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    dataset: Any = PlainTiles(str(slide), corners)
    began = time.perf_counter()
    rows = []
    with torch.inference_mode():
        for images in DataLoader(dataset, batch_size=32, num_workers=workers):
            rows.append(model(images.to(device)).cpu().numpy())
    return time.perf_counter() - began, np.concatenate(rows)


def times_alone(
    slide: Path, engine: Any, tiles: int | None = None, name: str = CNN
) -> tuple[TimeSpent, TimeSpent]:
    """Time only the reading and only the model, each done as in the extraction."""
    from lobule.cohort import Case
    from lobule.methods.extraction import ExtractionPredictor
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.device import available_cores
    from lobule.scanning.loader import load_batch
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
        rows, batches = batch_rows(pass_, size)
        batch = load_batch(pass_, images, rows, size)
        if tiles is not None and len(pass_.fields) != tiles:
            raise RuntimeError(f"{len(pass_.fields)} tiles read, {tiles} extracted")
    return read, time_spent_by(lambda: compute_all(predictor.model, engine, pass_.key, batch, batches))


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
    """Seconds of only the network of an encoder on as many scaled tiles, in the faster of two ways."""
    import torch

    network = make_encoder(name).for_inference().to(engine.device)
    batch = torch.rand(engine.batch, 3, TILE, TILE, device=engine.device)
    cores = engine.replicas * engine.replica_threads
    full_batches, rest = divmod(tiles, engine.batch)
    sizes = [engine.batch] * full_batches + [rest] * (rest > 0)

    def seconds(replicas: int) -> float:
        waiting = deque(sizes)

        def replica() -> None:
            torch.set_num_threads(cores // replicas)
            with contextlib.suppress(IndexError), torch.inference_mode():
                while True:
                    network(batch[: waiting.popleft()]).float().cpu()

        return time_spent_by(lambda: in_threads(replicas, replica)).wall

    return min(seconds(1), seconds(engine.replicas))


def transformer_ratios(slide: Path, folder: Path, plan: Plan) -> dict[str, float]:
    """Compare ViT-S/16, and both encoders in one pass, with only their models; the best of the rounds."""
    alone: dict[str, list[float]] = {CNN: [], VIT: []}
    walls: dict[str, list[float]] = {"vit": [], "both": []}
    network = []
    for repeat in range(plan.rounds_of_transformers):
        for kind, names in (("vit", (VIT,)), ("both", (CNN, VIT))):
            out = folder / f"{kind}-{repeat}"
            walls[kind].append(time_extraction(slide, out, "float32", names))
        engine = engine_of(folder / f"vit-{repeat}")
        tiles = len(read_features(folder / f"vit-{repeat}")[0])
        network.append(network_seconds(engine, VIT, tiles))
        for name in (CNN, VIT):
            alone[name].append(times_alone(slide, engine, tiles, name)[1].wall)
    print(
        f"{tiles} tiles in seconds: ViT-S/16 {min(walls['vit']):.2f}, its network alone {min(network):.2f}, "
        f"its model {min(alone[VIT]):.2f}; both {min(walls['both']):.2f}, ResNet-18 {min(alone[CNN]):.2f}"
    )
    return {
        "vit_of_bare_model": min(network) / min(walls["vit"]),
        "two_in_one_pass": min(walls["both"]) / (min(alone[CNN]) + min(alone[VIT])),
    }


def extract_and_read_tokens(slide: Path, out: Path) -> None:
    """Extract tokens of a slide, and read them again block by block."""
    from lobule.cohort import Case
    from lobule.features import open_features

    time_extraction(slide, out, "float32", (VIT,), "int8", channels_last=True)
    tokens = open_features(out).find_tokens(Case("slide", "patient", "slide", None))
    total = sum(float(block.sum()) for _, block in tokens.blocks())
    print(f"{tokens.count} tiles with tokens, mean {total / max(1, tokens.count):.3g}")


def difference(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(features - reference) / np.linalg.norm(reference))


def measure_ratios(slide: Path, folder: Path, plan: Plan) -> dict[str, float]:
    from lobule.scanning.device import available_cores, choose_device

    device, cores = choose_device(), available_cores()
    wall_times: dict[str, list[float]] = {"float32": [], "bfloat16": [], "plain": []}
    read_times, model_times = [], []
    features: dict[str, Any] = {}
    for repeat in range(plan.rounds):
        for precision in ("float32", "bfloat16"):
            out = folder / f"{precision}-{repeat}"
            wall_times[precision].append(time_extraction(slide, out, precision))
            corners, features[precision] = read_features(out)
        engine = engine_of(folder / f"float32-{repeat}")
        read, model = times_alone(slide, engine, len(corners))
        read_times.append(read)
        model_times.append(model)
        for workers in plan.workers:
            seconds, features["plain"] = run_plain_loop(slide, corners, workers)
            wall_times["plain"].append(seconds)
    wall, read, model = min(wall_times["float32"]), least(read_times), least(model_times)
    expected_wall = (read.cpu + model.cpu) / cores if device == "cpu" else max(read.wall, model.wall)
    print(f"{len(corners)} tiles on {device}; reading is {read.cpu / (read.cpu + model.cpu):.1%} of the CPU")
    print(
        f"features, float32 against the plain loop: {difference(features['float32'], features['plain']):.1e}"
    )
    print(f"features, bfloat16 against float32: {difference(features['bfloat16'], features['float32']):.1e}")
    return {
        "efficiency": expected_wall / wall,
        "of_bare_model": model.wall / wall,
        "over_plain_fp32": min(wall_times["plain"]) / wall,
        "over_plain_bf16": min(wall_times["plain"]) / min(wall_times["bfloat16"]),
    }


def memory_ratio(folder: Path, plan: Plan, key: str) -> float:
    """Peak memory for a slide of four times the area, over that for the usual one.

    With --quick, the large slide has the same amount of tissue, otherwise four times as much.
    """
    side = plan.side_of_tokens if key == "token_memory" else plan.side
    slides = {side: plan.tissue, 2 * side: plan.tissue / (4 if plan is QUICK else 1)}
    commands = []
    for side, tissue in slides.items():
        path = folder / f"{side}.tif"
        if not path.exists():
            paint_slide(path, side, tissue)
        commands.append([__file__, MEMORY[key], str(path), str(folder / f"{key}-{side}")])
    with ThreadPoolExecutor(2 if plan is QUICK else 1) as pool:
        peaks = list(pool.map(peak_bytes, commands))
    print(f"{key}: peaks of {peaks[0] / 1e6:.0f} and {peaks[1] / 1e6:.0f} MB")
    return peaks[1] / peaks[0]


MEMORY = {"memory_growth": "--extract", "token_memory": "--tokens"}
"""The ratios of memory, and the option of a child process that does the work."""
TRANSFORMERS = ("vit_of_bare_model", "two_in_one_pass")
KEYS = ("efficiency", "of_bare_model", "over_plain_fp32", "over_plain_bf16", *TRANSFORMERS, *MEMORY)


def run_child(option: str, slide: Path, out: Path) -> None:
    if option == MEMORY["token_memory"]:
        extract_and_read_tokens(slide, out)
    else:
        time_extraction(slide, out, "float32", channels_last=True)


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in MEMORY.values():
        run_child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
        return
    options = arguments(__doc__ or "", keys=KEYS)
    plan, keys = QUICK if options.quick else full(), (options.only,) if options.only else KEYS
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary_folder:
        folder = Path(temporary_folder)
        for side in {plan.side, plan.side_of_transformers}:
            paint_slide(folder / f"{side}.tif", side, plan.tissue)
        if set(keys) & {*KEYS} - {*TRANSFORMERS, *MEMORY}:
            ratios |= measure_ratios(folder / f"{plan.side}.tif", folder, plan)
        if set(keys) & set(TRANSFORMERS):
            ratios |= transformer_ratios(folder / f"{plan.side_of_transformers}.tif", folder, plan)
        print(", ".join(f"{key} {value:.3f}" for key, value in ratios.items()), flush=True)
        ratios |= {key: memory_ratio(folder, plan, key) for key in keys if key in MEMORY}
    print(machine())
    report("features", ratios)


if __name__ == "__main__":
    main()
