"""What Lobule makes of one GPU, and of several, in under 8 minutes. It has run on a CPU only, with `--tiny`.

Every part prints a ratio against the bare model, as PyTorch alone runs it on the same card in the same
precision (bfloat16 where the card has it), with the pixels already on the card:

    dense_a1, a2, a4    Mpixel/s of VGG-16's dense map at stride 32, 16 and 8 over those of the bare VGG-16
    arithmetic_a2, a4   the same, corrected for the additional multiplications of the finer map
    resnet50, vit_l, vit_h, vit_g
                        tiles/s of extracting features of a slide, end to end, over the bare network's
    slide               seconds of the bare VGG-16 on the tissue of a slide of 100,000 px a side, a fifth of
                        it tissue, over those of scanning it
    training            share of the time of a training in which it does not wait for patches
    several             rate of a scan with every card over that with one; nothing if there is one card only
    exam                share of a scan of a mammography exam, with heatmaps, in which a replica computes
    graph_small, graph_large, compiled_small, compiled_large
                        rate of ResNet-50 in a CUDA graph, and compiled by torch, on batches of 8 and 128
                        tiles, over that of the bare network; a scan uses neither
    busy_…              share of the time in which the card computes, by nvidia-smi, while the part runs

`--tiny` runs every part with small networks and slides on whatever device there is, a CPU too, in one to two
minutes; its ratios only show that the script works. `--only PART` runs one part. A part that fails is
reported, and the others still run. Parts that would begin more than 7 minutes after the start are left out.

    python benchmarks/gpu.py [--tiny] [--only dense|features|slide|training|exam|forms|several]
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_forms import forms_part
from gpu_measure import (
    FULL,
    MPP,
    TILE,
    TINY,
    Plan,
    Precision,
    bare,
    best_seconds,
    busy_share,
    device_of,
    is_late,
    precision_of,
    random_input,
)
from large_slide import write_large_slide
from measure import report


def vgg(plan: Plan) -> nn.Module:
    from lobule.nets.vgg import scannet_vgg16

    torch.manual_seed(0)
    return scannet_vgg16(2, widths=plan.widths, head_widths=plan.head_widths).eval()


def dense_predictor(plan: Plan) -> Any:
    from lobule.methods.scannet import Config, DensePredictor
    from lobule.nets.scaling import PLAIN_SCALING

    config = Config(mpp=MPP, cells=plan.field_cells, slide_score="max")
    return DensePredictor(config, vgg(plan), PLAIN_SCALING)


def multiplications(net: nn.Module, side: int) -> int:
    """Multiplications of the convolutions for one field."""
    shadow, total = copy.deepcopy(net).to("meta").eval(), 0

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += output.numel() * layer.weight[0].numel()

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    shadow(torch.empty(1, 3, side, side, device="meta"))
    return total


def dense_part(plan: Plan, device: str, folder: Path) -> dict[str, float]:
    from lobule.nets.dense import densify
    from lobule.scanning.contract import EngineSettings, ScanOptions
    from lobule.scanning.device import max_bytes_on
    from lobule.scanning.machine import GIB

    ratios: dict[str, float] = {}
    net = vgg(plan)
    plain = bare(net, device)
    for alpha in (1, 2, 4):
        options = ScanOptions(stride=32 // alpha)
        predictor = dense_predictor(plan)
        engine = EngineSettings(precision=precision_of(device), device=device)
        engine = predictor.model.choose_batch(engine, max_bytes_on(device, GIB), options)
        dense = densify(net, alpha)
        side = dense.geometry.in_size(engine.cells)
        x = random_input((1, 3, side, side), plain, device)
        pixels = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, device=device)
        predictor.model.move_to_device(engine, options)
        key, _ = predictor.model.sample_batch(engine, options)
        from lobule.scanning.contract import Batch

        with torch.inference_mode():
            alone = best_seconds(lambda: plain(x), device, plan.rounds)  # noqa: B023
            ours = best_seconds(lambda: predictor.model.forward(key, Batch(pixels)), device, plan.rounds)  # noqa: B023
        ratios[f"dense_a{alpha}"] = alone / ours
        if alpha > 1:
            work = multiplications(dense, side) / multiplications(net, side)
            ratios[f"arithmetic_a{alpha}"] = work * alone / ours
        print(f"dense, stride {32 // alpha}: fields of {side} px, {side**2 / ours / 1e6:.1f} Mpixel/s")
    return ratios


def features_part(plan: Plan, device: str, folder: Path) -> dict[str, float]:
    from lobule.files import read_json
    from lobule.nets.encoders import encoder

    slide = folder / "features.tif"
    write_large_slide(slide, plan.feature_side, 0.6, MPP)
    ratios: dict[str, float] = {}
    for name, backbone in plan.encoders.items():
        if is_late(plan, name):
            break
        out = folder / name
        with busy_share(name, device) as busy:
            tiles, seconds = extract(slide, out, backbone, device, precision_of(device))
        batch = read_json(out / "scan" / "scan.json")["engine"]["batch"]
        net = bare(encoder(backbone, "random").net, device)
        x = random_input((batch, 3, TILE, TILE), net, device)
        with torch.inference_mode():
            alone = best_seconds(lambda: net(x), device, plan.rounds) / batch  # noqa: B023
        ratios[name] = alone * tiles / seconds
        ratios |= busy
        print(f"{backbone}: {tiles} tiles in batches of {batch}, {tiles / seconds:.0f} tiles/s end to end")
    return ratios


def extract(slide: Path, out: Path, backbone: str, devices: str, precision: Precision) -> tuple[int, float]:
    """Extract the features of a slide, and return its number of tiles and the seconds."""
    import lobule
    from lobule.files import read_json

    done = lobule.extract_features(
        str(slide), out, backbone=backbone, weights="random", mpp=MPP, device=devices, precision=precision,
        runtime="torch", keep_encoder=False,
    )  # fmt: skip
    if done.counts != {"complete": 1}:
        raise RuntimeError(f"the extraction ended with {done.counts}: {done.failed}")
    seconds = read_json(out / "scan" / "cases" / slide.stem / "run.json")["seconds"]
    return done.counters.fields_done, seconds


def several_part(plan: Plan, device: str, folder: Path) -> dict[str, float]:
    from lobule.scanning.cards import choose_devices

    devices = choose_devices()
    if len(devices) == 1:
        print("several: one card only")
        return {}
    slide = folder / "several.tif"
    write_large_slide(slide, 2 * plan.feature_side, 0.6, MPP)
    rates = []
    for names in (devices[0], ",".join(devices)):
        out = folder / names.replace(":", "").replace(",", "-")
        tiles, seconds = extract(slide, out, plan.encoders["vit_l"], names, precision_of(device))
        rates.append(tiles / seconds)
    print(f"several: {rates[0]:.0f} tiles/s with one card, {rates[1]:.0f} with {len(devices)}")
    return {"several": rates[1] / rates[0]}


def slide_part(plan: Plan, device: str, folder: Path) -> dict[str, float]:
    import lobule
    from lobule.files import read_json
    from lobule.methods.scannet import Config, save
    from lobule.nets.backbones import BACKBONES
    from lobule.nets.scaling import PLAIN_SCALING

    path = folder / "large.tif"
    write_large_slide(path, plan.slide_side, 0.2, MPP)
    is_full, out = plan is FULL, folder / "slide"
    trunk = "scannet_vgg16" if is_full else "tiny"
    net = vgg(plan) if is_full else BACKBONES[trunk](2).eval()
    save(folder / "bundle", Config(trunk=trunk, mpp=MPP, cells=plan.field_cells), net, PLAIN_SCALING)
    with busy_share("slide", device) as busy:
        done = lobule.scan(
            folder / "bundle", str(path), out, device=device, precision=precision_of(device), runtime="torch"
        )
    if done.counts != {"complete": 1}:
        raise RuntimeError(f"the scan ended with {done.counts}: {done.failed}")
    seconds = read_json(out / "cases" / "large" / "run.json")["seconds"]
    fields, pixels = done.counters.fields_done, done.counters.pixels_done
    side = round((pixels / fields) ** 0.5)
    plain = bare(net, device)
    x = random_input((1, 3, side, side), plain, device)
    with torch.inference_mode():
        alone = best_seconds(lambda: plain(x), device, plan.rounds)
    print(f"slide: {fields} fields of {side} px in {seconds:.1f} s, {pixels / seconds / 1e6:.0f} Mpixel/s")
    return {"slide": alone * fields / seconds, **busy}


class Waiting:
    """A stream of batches that measures the seconds of waiting for them, after some to warm up."""

    def __init__(self, stream: Any, warm: int) -> None:
        self.stream, self.warm, self.batches, self.seconds, self.began = stream, warm, 0, 0.0, 0.0

    def __next__(self) -> Any:
        if self.batches == self.warm:
            self.began, self.seconds = time.perf_counter(), 0.0
        began = time.perf_counter()
        samples = next(self.stream)
        self.seconds += time.perf_counter() - began
        self.batches += 1
        return samples

    def state(self) -> dict[str, Any]:
        return dict(self.stream.state())

    def restore(self, state: Any) -> None:
        self.stream.restore(state)


def training_part(plan: Plan, device: str, folder: Path) -> dict[str, float]:
    from lobule.nets.scaling import PLAIN_SCALING
    from lobule.training.fitting import FitOptions, Group, TrainMachine, fit
    from lobule.training.sampling import SampleConfig, SampleStream
    from training import make_pool

    machine, batch, warm = TrainMachine(device=device).resolved(), 64 if plan is FULL else 8, 3
    (folder / "pool").mkdir()
    pool = make_pool(folder / "pool", 2, 4096 if plan is FULL else 2048)
    net = vgg(plan).train()
    net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(module: nn.Module, samples: Any) -> torch.Tensor:
        pixels = torch.from_numpy(samples.pixels).to(device, non_blocking=True)
        labels = torch.from_numpy(samples.labels).to(device, non_blocking=True)
        return nn.functional.cross_entropy(module(PLAIN_SCALING.apply(pixels)).flatten(1), labels)

    options = FitOptions(
        steps=plan.steps + warm, schedule="constant", checkpoint_every=10**9, device=device,
        precision=machine.precision, replicas=machine.replicas_for(batch), log_every=10**6,
    )  # fmt: skip
    config, workers = SampleConfig(MPP, 244), machine.workers or 1
    patches = SampleStream(pool, config, batch, seed=1, workers=workers, ahead=2 * workers)
    with busy_share("training", device) as busy, patches as stream:
        waiting = Waiting(stream, warm)
        fit(net, loss, waiting, options, folder / "fit", [Group(list(net.parameters()), 0.01)])
        wall = time.perf_counter() - waiting.began
    share = waiting.seconds / wall
    print(f"training: {plan.steps * batch / wall:.0f} images/s, waiting {share:.0%} of the time")
    return {"training": 1 - share, **busy}


def exam_part(plan: Plan, device: str, folder: Path) -> dict[str, float]:
    import lobule
    from lobule.methods.four_view import Config, save
    from lobule.methods.four_view.model import build
    from lobule.phantoms.exams import write_exams
    from lobule.scanning.device import available_cores, replicas_for
    from lobule.scanning.progress import Progress
    from lobule.settings import parse

    manifest = write_exams(folder / "exam", exams=1, size=plan.exam, seed=1)
    torch.manual_seed(0)
    config = parse(Config, {"architecture.heatmaps": True})
    networks = build(config)
    save(folder / "four_view", config, networks.members[0], *networks.patch_nets)
    settings = {"reading.painting": "fast", "reading.epochs": "10" if plan is FULL else "1"}
    progress = Progress()
    with busy_share("exam", device) as busy:
        done = lobule.scan(
            folder / "four_view", manifest, folder / "exams", device=device, runtime="torch",
            precision=precision_of(device), settings=settings, progress=progress,
        )  # fmt: skip
    if done.counts != {"complete": 1}:
        raise RuntimeError(f"the scan ended with {done.counts}: {done.failed}")
    print(f"exam: {done.seconds:.1f} s with heatmaps")
    replicas, _ = replicas_for(device, available_cores())
    return {"exam": progress.counters.model_s / replicas / done.seconds, **busy}


SECTIONS: dict[str, Callable[[Plan, str, Path], dict[str, float]]] = {
    "dense": dense_part,
    "slide": slide_part,
    "training": training_part,
    "exam": exam_part,
    "forms": forms_part,
    "features": features_part,
    "several": several_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes on any device, in a minute")
    parser.add_argument("--only", choices=list(SECTIONS), help="run one part")
    options = parser.parse_args()
    plan, device = TINY if options.tiny else FULL, device_of()
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU; --tiny runs the parts on a CPU")
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    print(f"{card}, {precision_of(device)}, torch {torch.__version__}")
    ratios: dict[str, float] = {}
    failed = []
    for name, section in SECTIONS.items():
        if options.only not in (None, name) or is_late(plan, name):
            continue
        began = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder:
                ratios |= section(plan, device, Path(folder))
        except Exception:  # The other parts are still measured.
            traceback.print_exc()
            failed.append(name)
        print(f"  ({name} took {time.perf_counter() - began:.0f} s)", flush=True)
    report("gpu", ratios)
    if failed:
        sys.exit(f"These parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
