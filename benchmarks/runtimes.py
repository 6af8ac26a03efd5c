"""Rates and differences of torch and OpenVINO for the networks that Lobule scans with, without any scan.

Each network computes the same batches in the form that a scan would use: torch in float32 (layers fused,
channels last), OpenVINO in float32, and OpenVINO in int8, calibrated with NNCF on fields of a generated slide
or exam. Every core computes its own batch, and the forms take turns. The weights are random, except that the
teacher reads `--teacher FILE` if it is given. The differences are those of scores (or, for the teacher, of
maps, divided by their standard deviation) on fields that the calibration did not see.

    openvino_…   rate of OpenVINO in float32 over that of torch in float32
    int8_…       rate of OpenVINO in int8 over that of torch in float32

Quantising takes most of the time. `--prepare DIR` only quantises; `--models DIR` then uses these models.
`--quick` measures the ResNet-18 only, in fewer rounds, and calibrates on 12 fields.

    python benchmarks/runtimes.py [--quick] [--only NAME] [--teacher FILE] [--prepare DIR | --models DIR]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from measure import report

FORMS = {"torch": ("torch", "float32"), "openvino": ("openvino", "float32"), "int8": ("openvino", "int8")}


MOST_SECONDS = 60


@dataclass(frozen=True)
class Subject:
    """A network in its form for inference."""

    build: Callable[[str], nn.Module]
    side: int
    batch: int
    fields: int = 64
    """Fields of the calibration."""
    is_exam: bool = False
    is_classifier: bool = True


def seeded(net: nn.Module) -> nn.Module:
    """Random weights whose scores spread over 0 to 1, and whose residual sums do not grow."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("bn2.weight", "bn3.weight")):
                parameter.fill_(0.5)
    return net.eval()


def residual(name: str) -> nn.Module:
    from lobule.nets.inference import for_inference
    from lobule.nets.resnet import resnet

    return for_inference(seeded(resnet(name, 2)))


def dense_vgg() -> nn.Module:
    from lobule.nets.dense import densify
    from lobule.nets.inference import for_inference
    from lobule.nets.vgg import scannet_vgg16

    return densify(for_inference(scannet_vgg16(2).eval()), 4)


def patch_net() -> nn.Module:
    from lobule.nets.four_view import patch_densenet
    from lobule.nets.painter import Painter

    return Painter(patch_densenet())


class Stages(nn.Module):
    """The three maps of a teacher."""

    def __init__(self, file: str) -> None:
        super().__init__()
        from lobule.bundles import plain_weights
        from lobule.nets.inference import for_inference
        from lobule.nets.teachers import load_teacher_weights, teacher

        net = teacher("squeezenet1_1")
        if file:
            load_teacher_weights(net, plain_weights(file))
        self.stages = for_inference(net.stages)

    def forward(self, x: Tensor) -> Any:
        return self.stages(x)


SUBJECTS = {
    "resnet18": Subject(lambda _: residual("resnet18"), 224, 8),
    "resnet50": Subject(lambda _: residual("resnet50"), 224, 8),
    "vgg16_dense_a4": Subject(lambda _: dense_vgg(), 412, 1, fields=12),
    "densenet_patches": Subject(lambda _: patch_net(), 256, 8, is_exam=True),
    "squeezenet_teacher": Subject(Stages, 256, 8, is_classifier=False),
}


def fields_of(subject: Subject, count: int, folder: Path) -> NDArray[np.float32]:
    """Return scaled fields (count, channels, side, side) with tissue."""
    side, rng = subject.side, np.random.default_rng(0)
    if subject.is_exam:
        from lobule.cohort import read_cohort
        from lobule.mammograms.exam_views import ExamView, open_views
        from lobule.mammograms.published.windows import standardise
        from lobule.methods.four_view import Config
        from lobule.phantoms.exams import write_exams

        case = read_cohort(write_exams(folder / "exam", exams=1, size=(2600, 1900), seed=1)).cases[0]
        views = open_views(case, Config().view_options, joined=True)
        shown = [view.pixels for view in views.values() if isinstance(view, ExamView)]
        layers = [standardise(view, np.float64).astype(np.float32)[None] for view in shown]
    else:
        from lobule.geometry import Box
        from lobule.phantoms.slides import SlidePhantom, render

        phantom = SlidePhantom(seed=13, width=4096, height=4096, mpp=0.5, tissue=0.6, sections=1)
        pixels = render(phantom, Box(0, 0, 4096, 4096)).transpose(2, 0, 1)
        layers = [pixels.astype(np.float32) / np.float32(255)]
    fields: list[NDArray[np.float32]] = []
    while len(fields) < count:
        layer = layers[len(fields) % len(layers)]
        y, x = (int(rng.integers(0, length - side)) for length in layer.shape[1:])
        field = layer[:, y : y + side, x : x + side]
        if field.std() > 0.05:  # neither glass nor air
            fields.append(field)
    return np.stack(fields)


def in_threads(net: nn.Module, batches: list[Tensor], cores: int) -> tuple[float, list[Any]]:
    """Return the seconds of all batches, one on each core at a time, and their outputs."""

    def compute(x: Tensor) -> Any:
        with torch.inference_mode():
            return net(x)

    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        barrier = threading.Barrier(cores)
        list(pool.map(lambda x: (barrier.wait(), compute(x)), batches[:cores]))  # each thread gets ready
        began = time.perf_counter()
        outputs = list(pool.map(compute, batches))
        return time.perf_counter() - began, outputs


def scores_of(outputs: list[Any], subject: Subject) -> NDArray[np.float32]:
    if not subject.is_classifier:
        maps = [value.numpy() for one in outputs for value in one]
        return np.concatenate([one.ravel() / one.std() for one in maps])
    logits = [one.float().flatten(2) if one.ndim == 4 else one.float()[:, :, None] for one in outputs]
    return np.concatenate([torch.softmax(one, dim=1).numpy().ravel() for one in logits])


def measure(
    name: str, subject: Subject, rounds: int, fields: int, teacher: str, models: str
) -> dict[str, float]:
    """Return the rates relative to torch. After two rounds, no round begins later than `MOST_SECONDS`.

    Args:
        name: The name of the network.
        subject: The network.
        rounds: Number of rounds; 0 only quantises the network.
        fields: Number of fields of the calibration.
        teacher: File with the weights of the teacher.
        models: Folder that keeps the int8 models; empty for none.
    """
    from lobule.api.quantization import rank_correlation
    from lobule.scanning.contract import EngineSettings
    from lobule.scanning.device import copy_to_device
    from lobule.scanning.int8 import CollectedInputs, write_models
    from lobule.scanning.network_identity import INDEX

    torch.manual_seed(1)
    net, cores = subject.build(teacher).eval(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        pixels = torch.from_numpy(fields_of(subject, fields + 4 * cores * subject.batch, Path(folder)))
        batches = list(pixels[fields:].split(subject.batch))
        quantised = Path(models or folder) / name
        engine = EngineSettings(replicas=cores, batch=subject.batch, int8_folder=str(quantised))
        if not (quantised / INDEX).exists():
            quantised.mkdir(parents=True, exist_ok=True)
            collected = CollectedInputs(fields)
            in_float32: Any = copy_to_device(net, replace(engine, runtime="openvino"))
            for batch in pixels[:fields].split(subject.batch):
                collected.add(in_float32, batch)
            began = time.perf_counter()
            write_models(collected, engine, quantised)
            print(f"{name}: calibrated on {fields} fields in {time.perf_counter() - began:.0f} s")
        if not rounds:
            return {}
        nets = {
            form: copy_to_device(net, replace(engine, runtime=runtime, precision=precision))
            for form, (runtime, precision) in FORMS.items()
        }
        best, scores = dict.fromkeys(FORMS, float("inf")), {}
        began = time.perf_counter()
        for turn in range(rounds):
            if turn > 1 and time.perf_counter() - began > MOST_SECONDS:
                break
            for form, module in nets.items():
                seconds, outputs = in_threads(module, batches, cores)
                best[form], scores[form] = min(best[form], seconds), scores_of(outputs, subject)
    for form in FORMS:
        difference = np.abs(scores[form] - scores["torch"])
        rank = rank_correlation(scores[form], scores["torch"])
        print(
            f"  {form:<9} {len(batches) * subject.batch / best[form]:8.2f} fields/s; differs by at most "
            f"{difference.max():.2g}, {difference.mean():.2g} on average; rank correlation {rank or 0:.4f}"
        )
    return {f"{form}_{name}": best["torch"] / best[form] for form in ("openvino", "int8")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and fields; ResNet-18 only")
    parser.add_argument("--only", choices=SUBJECTS, help="one network")
    parser.add_argument("--teacher", default="", metavar="FILE", help="weights of SqueezeNet 1.1")
    parser.add_argument("--prepare", default="", metavar="DIR", help="quantise into this folder, and stop")
    parser.add_argument("--models", default="", metavar="DIR", help="a folder that --prepare has filled")
    options = parser.parse_args()
    chosen = [options.only] if options.only else ["resnet18"] if options.quick else list(SUBJECTS)
    ratios: dict[str, float] = {}
    for name in chosen:
        rounds, fields = (2, 12) if options.quick else (5, SUBJECTS[name].fields)
        rounds = 0 if options.prepare else rounds
        models = options.prepare or options.models
        ratios |= measure(name, SUBJECTS[name], rounds, fields, options.teacher, models)
    if options.prepare:
        return
    report("runtimes", ratios)


if __name__ == "__main__":
    main()
