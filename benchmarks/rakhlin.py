"""Descriptors of one image of BACH's size by Rakhlin's recipe, against a plain reading of the paper.

over_plain_fp32   how many times faster, at descriptors that differ by less than 1e-4 of their size
over_plain_bf16   the same with bfloat16; worth it where the machine has matrix units for it, and else below 1
augmenting        share of the whole that stain augmentation and cropping take
difference_fp32   largest difference of a descriptor over the largest of its values
difference_bf16   the same with bfloat16

The plain reading: for each augmentation one pair of stain factors by the published formula, pixel by pixel in
NumPy; then each crop alone is cut, scaled and encoded by torchvision's net as it is, with all threads, and
20 descriptors are pooled. Ours: the parts of the scanner in as many replicas as there are cores. A full image
is 50 augmentations of 20 crops for each set; some augmentations are timed, of both, in turns, and the ratio
is of those. Nets have random weights, which take as long as any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lobule.color import FORWARD, STAINS
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.crops import draw_crop, draw_stains, generator_of, p_norm, prepared
from lobule.methods.rakhlin.describe import Describer, cropped, random_params
from lobule.methods.rakhlin.encoders import Plan, pretrained
from lobule.scanning.contract import Batch, EngineSettings, ScanOptions
from lobule.scanning.device import available_cores, replicas_for
from measure import arguments, report

SEED, KEY = 0, "image"
Descriptors = NDArray[np.float64]


def plainly_stained(rgb: NDArray[np.uint8], hematoxylin: float, eosin: float) -> NDArray[np.uint8]:
    """The published augmentation, written down as the paper has it."""
    density = -np.log10((rgb.astype(np.float64) + 1) / 240)
    stains = density.reshape(-1, 3) @ FORWARD.T * np.array([hematoxylin, eosin, 1.0])
    light = 240 * 10 ** (-(stains @ STAINS)) - 1
    out: NDArray[np.uint8] = np.clip(light, 0, 255).astype(np.uint8).reshape(rgb.shape)
    return out


class Plain:
    """A plain reading of the paper: one thing at a time."""

    def __init__(self, config: Config, net: nn.Module) -> None:
        self.config, self.net = config, net.eval()

    def describe(self, image: NDArray[np.uint8], augmentation: int) -> Descriptors:
        (set_,) = self.config.sets
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        rng = generator_of(SEED, KEY, set_.name, augmentation)
        stained = plainly_stained(image, *draw_stains(rng))
        features = []
        for _ in range(self.config.crops):
            crop = draw_crop(rng, image.shape[0], image.shape[1], set_.size).of(stained)
            x = torch.from_numpy(((crop / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
            with torch.inference_mode():
                features.append(self.net(x.contiguous())["out"].mean((2, 3)).numpy())
        return p_norm(np.concatenate(features))


class Ours:
    """The parts of the scanner, in replicas."""

    def __init__(self, config: Config, describer: Describer, precision: str) -> None:
        self.config, self.describer = config, describer
        self.replicas, self.threads = replicas_for("cpu", available_cores())
        engine = replace(
            EngineSettings(), precision=precision, replicas=self.replicas, replica_threads=self.threads
        )
        self.engine = describer.choose_batch(engine, (1 << 30) // self.replicas, ScanOptions())
        self.pool = ThreadPoolExecutor(
            self.replicas, initializer=torch.set_num_threads, initargs=(self.threads,)
        )

    def move_to_device(self, layouts: Sequence[bool]) -> None:
        """Place the net in the fastest of some memory layouts, as a scan does at its start."""
        rates = {}
        for channels_last in layouts:
            self.describer.move_to_device(replace(self.engine, channels_last=channels_last), ScanOptions())
            rates[channels_last] = min(self.pool.submit(self._sampled).result() for _ in range(3))
        fastest = replace(self.engine, channels_last=min(rates, key=lambda kind: rates[kind]))
        self.describer.move_to_device(fastest, ScanOptions())

    def _sampled(self) -> float:
        key, batch = self.describer.sample_batch(self.engine, ScanOptions())
        with torch.inference_mode():
            start = time.perf_counter()
            self.describer.forward(key, batch)
            return time.perf_counter() - start

    def describe(self, image: NDArray[np.uint8], augmentations: list[int]) -> Descriptors:
        return np.stack(list(self.pool.map(lambda number: self._one(image, number), augmentations)))

    def batch(self, image: NDArray[np.uint8], augmentation: int) -> Batch:
        sides = np.array([image.shape[:2]])
        params = random_params(self.config, self.describer.sets, [(KEY, augmentation)], sides, SEED, "image")
        pixels = torch.from_numpy(image.reshape(1, 1, -1, 3))
        return Batch(pixels, {name: torch.from_numpy(values) for name, values in params.items()})

    def _one(self, image: NDArray[np.uint8], augmentation: int) -> Descriptors:
        with torch.inference_mode():
            descriptors = self.describer.describe(self.batch(image, augmentation))
        (rows,) = descriptors.values()
        return rows[0].double().numpy()

    def augmenting(self, image: NDArray[np.uint8]) -> float:
        """CPU seconds of stains and crops of one augmentation, alone."""
        batch = self.batch(image, 0)
        (set_,) = self.describer.sets

        def run() -> float:
            start = time.thread_time()
            tensor = torch.from_numpy(image)
            stained = self.describer._stained(tensor, batch.params["stains"][0, 0].tolist())
            torch.stack([cropped(stained, set_.size, *crop) for crop in batch.params["crops"][0, 0].tolist()])
            return time.thread_time() - start

        return min(self.pool.submit(run).result() for _ in range(3))


def timed(task: Callable[[], Descriptors]) -> tuple[float, Descriptors]:
    start = time.perf_counter()
    result = task()
    return time.perf_counter() - start, result


def main() -> None:
    quick = arguments(__doc__ or "").quick
    name, crops = ("squeezenet1_1", 4) if quick else ("resnet50", 20)
    config = Config(encoders=(name,), weights=("random",), sizes=(400,), crops=crops)
    rng = np.random.default_rng(0)
    tissue = rng.normal((190, 130, 180), 25, (1536, 2048, 3)).clip(0, 255).astype(np.uint8)
    image = prepared(tissue).rgb
    encoder = pretrained(Plan.of(config, 0), "random")
    cores = available_cores()
    torch.set_num_threads(cores)
    plain = Plain(config, plain_net(name, encoder.trunk.state_dict()))
    kinds = {kind: Ours(config, Describer(config, {0: encoder}), kind) for kind in ("float32", "bfloat16")}
    kinds["float32"].move_to_device((True, False))
    kinds["bfloat16"].move_to_device((True,))
    at_once = kinds["float32"].replicas
    rounds = 1 if quick else 2
    seconds: dict[str, list[float]] = {"plain": [], **{kind: [] for kind in kinds}}
    descriptors: dict[str, Descriptors] = {}
    for round_ in range(rounds):
        numbers = [round_ * at_once + replica for replica in range(at_once)]
        torch.set_num_threads(cores)
        took, descriptors["plain"] = timed(lambda: np.stack([plain.describe(image, n) for n in numbers]))  # noqa: B023
        seconds["plain"].append(took)
        for kind, ours in kinds.items():
            took, descriptors[kind] = timed(lambda: ours.describe(image, numbers))  # noqa: B023
            seconds[kind].append(took)
    augmenting = kinds["float32"].augmenting(image) * at_once / (min(seconds["float32"]) * cores)
    best = {kind: min(values) for kind, values in seconds.items()}
    ratios = {
        "over_plain_fp32": best["plain"] / best["float32"],
        "over_plain_bf16": best["plain"] / best["bfloat16"],
        "augmenting": augmenting,
        "difference_fp32": difference(descriptors["float32"], descriptors["plain"]),
        "difference_bf16": difference(descriptors["bfloat16"], descriptors["plain"]),
    }
    minutes_in_full = {kind: value / at_once * config.augmentations / 60 for kind, value in best.items()}
    print(
        f"{name}, crops of 400 px: one set of one image in "
        + ", ".join(f"{k} {v:.1f} min" for k, v in minutes_in_full.items())
    )
    report("rakhlin", ratios)


def plain_net(name: str, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Torchvision's net up to the last features, nothing folded."""
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    from lobule.methods.rakhlin.encoders import TAPS

    net: nn.Module = create_feature_extractor(get_model(name, weights=None).eval(), {TAPS[name][-1]: "out"})
    net.load_state_dict(weights)
    return net


def difference(one: Descriptors, other: Descriptors) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


if __name__ == "__main__":
    main()
