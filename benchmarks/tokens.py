"""A map from tokens of a ViT-S/16, compared with one tile per cell, with its own windows, and with the model.

The input is a generated slide; encoder and head have seeded random weights, since no figure depends on them.

    token_map_over_tiles  seconds of a map with one tile of 224 px per cell of 16 px, over those of the token
                          map. The tile map is extrapolated: its cells times the measured seconds of a tile,
                          with all cores busy and nothing but the model. The token map is measured end to
                          end. Without overlap a window gives (224 / 16)² = 196 cells; windows that overlap by
                          5 of 14 tokens give 9² = 81 new ones, and fewer at borders of fields and tissue.
    seam_error            mean jump between neighbouring cells across the borders of windows, minus that of
                          all other neighbours, over the range of the scores
    shift_error           mean difference between the map and one whose windows are shifted by half a hop,
                          over the range of the scores
    efficiency_vit        seconds of only the model on as many windows, with pixels in memory and all cores
                          busy, over those of the scan; half of the windows are measured

`--quick` takes a slide of two fields, one for each of two cores, and one round in place of two.

    python benchmarks/tokens.py [--quick]
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import paint_slide
from measure import arguments, machine, report
from scan_parts import in_threads, time_spent_by

MPP = 0.5
ENCODER = "kaiko-vits16"
"""A ViT-S/16."""


@dataclass(frozen=True)
class Plan:
    """Size of the slide, its tissue, and the number of rounds."""

    width: int
    height: int
    tissue: float
    rounds: int


FULL, QUICK = Plan(4608, 4608, 0.5, 2), Plan(2240, 1120, 0.95, 1)
"""The quick slide has two fields of the same size, one for each of two cores."""


def make_model() -> Any:
    """A probe with seeded random weights."""
    import torch

    from lobule.encoders.load import open_encoder
    from lobule.methods.probe import Config, ProbeModel
    from lobule.methods.probe.heads import LinearHead
    from lobule.methods.probe.model import NEEDED

    class Probe(ProbeModel):
        """A probe whose sample has one window: with its precision fixed, a scan need not compare forms."""

        def sample_batch(self, engine: Any, options: Any) -> Any:
            key, batch = super().sample_batch(engine, options)
            batch.params[NEEDED][:, 1:] = 0
            return key, batch

    config = Config(encoder=ENCODER, weights="random", mpp=MPP)
    encoder = open_encoder(ENCODER, "random")
    width = ProbeModel(config, encoder, torch.nn.Identity()).net.width
    weight = torch.randn(width, generator=torch.Generator().manual_seed(1)) / width**0.5
    return Probe(config, encoder, LinearHead(weight, torch.tensor(0.0)))


def scan_slide(model: Any, slide: Path, out: Path) -> tuple[float, Any]:
    """Scan the slide; return the seconds of the case and the reader of its map."""
    from lobule.cohort import Case, Cohort
    from lobule.methods.probe import ProbePredictor
    from lobule.results import open_results
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.scan import Machine, scan

    info = {"method": "probe", "fingerprint": "f", "classes": ["normal", "tumour"]}
    cohort = Cohort((Case("slide", "patient", "slide", str(slide)),))
    machine_options = Machine(runtime="torch", precision="float32", channels_last=True)
    scan_report = scan(ProbePredictor(model.config, model), info, cohort, out, ScanOptions(), machine_options)
    if scan_report.counts != {"complete": 1}:
        raise RuntimeError(f"the scan ended with {scan_report.counts}: {scan_report.failed}")
    folder = open_results(out).case_folder("slide")
    seconds = float(json.loads((folder.path / "run.json").read_text())["seconds"])
    return seconds, folder.maps["tokens"]


def count_windows(model: Any, reader: Any) -> int:
    """The number of windows that the scan of a map computes."""
    from lobule.stitch import State

    required = reader.read()[1] == State.SCORED
    cells = reader.info.chunk[0]  # A chunk is one field high.
    rows, columns = (-(-side // cells) for side in required.shape)
    padded = np.zeros((rows * cells, columns * cells), np.bool_)
    padded[: required.shape[0], : required.shape[1]] = required
    blocks = padded.reshape(rows, cells, columns, cells).transpose(0, 2, 1, 3).reshape(-1, cells, cells)
    return int(model.windows.needed(blocks).sum())


def seconds_of_windows(model: Any, windows: int, pooled: bool) -> float:
    """Wall time of the encoder alone on a number of windows, with every core busy."""
    import torch

    from lobule.scanning.contract import EngineSettings, ScanOptions
    from lobule.scanning.device import SLICE, available_cores, choose_device, replicas_for

    device = choose_device()
    replicas, threads = replicas_for(device, available_cores())
    engine = EngineSettings(device=device, replicas=replicas, replica_threads=threads)
    model.move_to_device(engine, ScanOptions())
    side = model.net.window
    pixels = torch.randint(0, 256, (SLICE, side, side, 3), dtype=torch.uint8, device=device)
    slices = -(-windows // SLICE)
    shares = iter([slices // replicas + (number < slices % replicas) for number in range(replicas)])
    network = model.encoder.net.to(device) if pooled else model._device_net

    def compute() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            for _ in range(next(shares)):
                network(model.encoder.scaling.apply(pixels))

    time_spent = time_spent_by(lambda: in_threads(replicas, compute))
    return float(time_spent.wall) * windows / (slices * SLICE)


def windows_for_all_cores(windows: int) -> int:
    """About as many windows, at least one slice for each replica, and as many slices for each."""
    from lobule.scanning.device import SLICE, available_cores, choose_device, replicas_for

    windows_at_once = SLICE * replicas_for(choose_device(), available_cores())[0]
    return windows_at_once * max(1, windows // windows_at_once)


def seam_error(model: Any, reader: Any) -> float:
    from lobule.stitch import State

    scores, states = reader.read()
    layer, scored = scores[0], states == State.SCORED
    hop, side = model.windows.hop, model.windows.side
    at_border, elsewhere = [], []
    for axis in (0, 1):
        jump = np.abs(np.diff(layer, axis=axis))
        both = np.logical_and(*_pairs(scored, axis))
        second = np.arange(1, layer.shape[axis])
        is_border = (second % hop == 0) | ((second - side) % hop == 0)
        is_border = is_border[:, None] if axis == 0 else is_border[None]
        at_border.append(jump[both & is_border])
        elsewhere.append(jump[both & ~is_border])
    values = layer[scored]
    difference = np.concatenate(at_border).mean() - np.concatenate(elsewhere).mean()
    return float(difference / (values.max() - values.min()))


def _pairs(scored: NDArray[np.bool_], axis: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return (scored[:-1], scored[1:]) if axis == 0 else (scored[:, :-1], scored[:, 1:])


def shift_error(model: Any, slide: Path) -> float:
    """Compare the maps of two fields whose windows lie half a hop apart, on the cells of both."""
    import torch

    from lobule.geometry import Box
    from lobule.scanning.contract import EngineSettings, ScanOptions
    from lobule.slides import open_slide

    windows, px = model.windows, model.net.token_px
    cells, shift = 3 * windows.hop, windows.hop // 2
    side = px * (cells + windows.before + windows.after)
    model.move_to_device(EngineSettings(), ScanOptions())
    needed = torch.ones(windows.windows(cells) ** 2)
    maps = []
    with open_slide(str(slide)) as opened:
        start = max(0, (opened.size.width - side) // 2)
        for offset in (0, shift * px):
            pixels = opened.read_level(0, Box(start + offset, start + offset, side, side))
            with torch.inference_mode():
                maps.append(model._field(torch.from_numpy(pixels), needed).numpy())
    first, second = maps[0][shift:, shift:], maps[1][: cells - shift, : cells - shift]
    return float(np.abs(first - second).mean() / (first.max() - first.min()))


def measure(slide: Path, folder: Path, plan: Plan) -> dict[str, float]:
    model = make_model()
    scans, alone, tiles = [], [], []
    for repeat in range(plan.rounds):
        seconds, reader = scan_slide(model, slide, folder / f"scan-{repeat}")
        scans.append(seconds)
        windows = count_windows(model, reader)
        some = windows_for_all_cores(windows // 2)
        alone.append(seconds_of_windows(model, some, pooled=False) * windows / some)
        few = windows_for_all_cores(windows // 8)
        tiles.append(seconds_of_windows(model, few, pooled=True) / few)
    cells = int((reader.read()[1] == 2).sum())
    print(
        f"{cells} cells, {windows} windows: {cells / windows:.1f} cells per window; "
        f"scan {min(scans):.1f} s, model alone {min(alone):.1f} s, one tile {min(tiles) * 1000:.1f} ms"
    )
    return {
        "token_map_over_tiles": cells * min(tiles) / min(scans),
        "seam_error": seam_error(model, reader),
        "shift_error": shift_error(model, slide),
        "efficiency_vit": min(alone) / min(scans),
    }


def main() -> None:
    plan = QUICK if arguments(__doc__ or "").quick else FULL
    with tempfile.TemporaryDirectory() as temporary_folder:
        folder = Path(temporary_folder)
        slide = folder / "slide.tif"
        paint_slide(slide, plan.width, plan.tissue, plan.height)
        ratios = measure(slide, folder, plan)
    print(machine())
    report("tokens", ratios)


if __name__ == "__main__":
    main()
