"""Time to compute the descriptors of one image of BACH's size, compared with a direct implementation.

over_plain_fp32   speed relative to the direct implementation, where `difference_fp32` is below 1e-4
over_plain_bf16   the same with bfloat16; above 1 only on machines with matrix units for bfloat16
augmenting        share of the time that stain augmentation and cropping take
difference_fp32   largest difference of a descriptor value, divided by the largest value
difference_bf16   the same with bfloat16

The direct implementation follows the paper step by step. For each augmentation it multiplies the stains by
the published formula, pixel by pixel in NumPy. It then cuts, scales and encodes each crop separately with the
unmodified torchvision network on all threads, and pools the descriptors of the 20 crops. Lobule uses the
components of its scanner, in several replicas that run at the same time.

A full image has 50 augmentations of 20 crops for each set. Only some of the augmentations are timed, and both
implementations take turns. Weights are random, which does not change the speed. `--quick` runs one round
instead of two, with one augmentation of the direct implementation, and without bfloat16, which takes too long
on a CPU that emulates it.
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
from lobule.methods.rakhlin.crops import draw_crop, draw_stains, generator_of, p_norm, resize_and_normalise
from lobule.methods.rakhlin.describe import Describer, crop_tensor, random_params
from lobule.methods.rakhlin.encoders import Plan, pretrained
from lobule.scanning.contract import Batch, EngineSettings, ScanOptions
from lobule.scanning.device import available_cores, replicas_for
from measure import arguments, report

SEED, KEY = 0, "image"
DescriptorRows = NDArray[np.float64]
"""(augmentations, d), or (d,) for one augmentation."""


def augment_stains_directly(rgb: NDArray[np.uint8], hematoxylin: float, eosin: float) -> NDArray[np.uint8]:
    """Multiply the stains of an image by the formula of the paper."""
    density = -np.log10((rgb.astype(np.float64) + 1) / 240)
    stains = density.reshape(-1, 3) @ FORWARD.T * np.array([hematoxylin, eosin, 1.0])
    light = 240 * 10 ** (-(stains @ STAINS)) - 1
    augmented: NDArray[np.uint8] = np.clip(light, 0, 255).astype(np.uint8).reshape(rgb.shape)
    return augmented


class DirectImplementation:
    """Computes descriptors as the paper describes, one crop at a time."""

    def __init__(self, config: Config, net: nn.Module) -> None:
        self.config, self.net = config, net.eval()

    def describe(self, image: NDArray[np.uint8], augmentation: int) -> DescriptorRows:
        (set_,) = self.config.sets
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        rng = generator_of(SEED, KEY, set_.name, augmentation)
        augmented = augment_stains_directly(image, *draw_stains(rng))
        features = []
        for _ in range(self.config.crops):
            crop = draw_crop(rng, image.shape[0], image.shape[1], set_.size).of(augmented)
            x = torch.from_numpy(((crop / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
            with torch.inference_mode():
                features.append(self.net(x.contiguous())["out"].mean((2, 3)).numpy())
        return p_norm(np.concatenate(features))


class ScannerImplementation:
    """Computes descriptors with the components of the scanner, in several replicas at the same time."""

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
        """Measure memory layouts (channels last or not) and choose the fastest, as a scan does."""
        seconds = {}
        for channels_last in layouts:
            self.describer.move_to_device(replace(self.engine, channels_last=channels_last), ScanOptions())
            rounds = 3 if len(layouts) > 1 else 1
            samples = [self.pool.submit(self._sample_seconds).result() for _ in range(rounds)]
            seconds[channels_last] = min(samples)
        fastest = replace(self.engine, channels_last=min(seconds, key=lambda layout: seconds[layout]))
        self.describer.move_to_device(fastest, ScanOptions())

    def _sample_seconds(self) -> float:
        key, batch = self.describer.sample_batch(self.engine, ScanOptions())
        with torch.inference_mode():
            start = time.perf_counter()
            self.describer.forward(key, batch)
            return time.perf_counter() - start

    def describe(self, image: NDArray[np.uint8], augmentations: list[int]) -> DescriptorRows:
        return np.stack(list(self.pool.map(lambda number: self._describe_one(image, number), augmentations)))

    def batch(self, image: NDArray[np.uint8], augmentation: int) -> Batch:
        sides = np.array([image.shape[:2]])
        params = random_params(self.config, self.describer.sets, [(KEY, augmentation)], sides, SEED, "image")
        pixels = torch.from_numpy(image.reshape(1, 1, -1, 3))
        return Batch(pixels, {name: torch.from_numpy(values) for name, values in params.items()})

    def _describe_one(self, image: NDArray[np.uint8], augmentation: int) -> DescriptorRows:
        with torch.inference_mode():
            descriptors = self.describer.describe(self.batch(image, augmentation))
        (rows,) = descriptors.values()
        return rows[0].double().numpy()

    def augmentation_seconds(self, image: NDArray[np.uint8]) -> float:
        """CPU seconds that the stain augmentation and the crops of one augmentation take."""
        batch = self.batch(image, 0)
        (set_,) = self.describer.sets

        def run() -> float:
            start = time.thread_time()
            tensor = torch.from_numpy(image)
            augmented = self.describer.augment(tensor, batch.params["stains"][0, 0].tolist())
            crops = batch.params["crops"][0, 0].tolist()
            torch.stack([crop_tensor(augmented, set_.size, *crop) for crop in crops])
            return time.thread_time() - start

        return min(self.pool.submit(run).result() for _ in range(3))


def run_timed(task: Callable[[], DescriptorRows]) -> tuple[float, DescriptorRows]:
    """Run a task; return its seconds and its result."""
    start = time.perf_counter()
    result = task()
    return time.perf_counter() - start, result


def main() -> None:
    quick = arguments(__doc__ or "").quick
    name = "resnet50"
    config = Config(encoders=(name,), weights=("random",), sizes=(400,), crops=20)
    rng = np.random.default_rng(0)
    tissue = rng.normal((190, 130, 180), 25, (1536, 2048, 3)).clip(0, 255).astype(np.uint8)
    image = resize_and_normalise(tissue).rgb
    encoder = pretrained(Plan.of(config, 0), "random")
    cores = available_cores()
    torch.set_num_threads(cores)
    net = unmodified_net(name, encoder.trunk.state_dict())
    direct = DirectImplementation(config, net)
    DirectImplementation(replace(config, crops=1), net).describe(image, 0)  # The first use is not counted.
    scanners = {
        precision: ScannerImplementation(config, Describer(config, {0: encoder}), precision)
        for precision in (("float32",) if quick else ("float32", "bfloat16"))
    }
    for precision, scanner in scanners.items():
        scanner.move_to_device((True, False) if precision == "float32" and not quick else (True,))
    replicas = scanners["float32"].replicas
    seconds: dict[str, list[float]] = {"plain": [], **{precision: [] for precision in scanners}}
    descriptors: dict[str, DescriptorRows] = {}
    for round_ in range(1 if quick else 2):
        numbers = [round_ * replicas + replica for replica in range(replicas)]
        torch.set_num_threads(cores)
        direct_numbers = numbers[:1] if quick else numbers
        elapsed, descriptors["plain"] = run_timed(
            lambda: np.stack([direct.describe(image, number) for number in direct_numbers])  # noqa: B023
        )
        seconds["plain"].append(elapsed * len(numbers) / len(direct_numbers))
        for precision, scanner in scanners.items():
            elapsed, descriptors[precision] = run_timed(lambda: scanner.describe(image, numbers))  # noqa: B023
            seconds[precision].append(elapsed)
    best = {kind: min(values) for kind, values in seconds.items()}
    augmentation_seconds = scanners["float32"].augmentation_seconds(image)
    ratios = {
        "over_plain_fp32": best["plain"] / best["float32"],
        "augmenting": augmentation_seconds * replicas / (best["float32"] * cores),
        "difference_fp32": relative_difference(descriptors["float32"], descriptors["plain"]),
    }
    if "bfloat16" in scanners:
        ratios["over_plain_bf16"] = best["plain"] / best["bfloat16"]
        ratios["difference_bf16"] = relative_difference(descriptors["bfloat16"], descriptors["plain"])
    else:
        print("Not measured with --quick: over_plain_bf16, difference_bf16")
    full_minutes = {kind: value / replicas * config.augmentations / 60 for kind, value in best.items()}
    print(
        f"{name}, crops of 400 px: one set of one image in "
        + ", ".join(f"{kind} {minutes:.1f} min" for kind, minutes in full_minutes.items())
    )
    report("rakhlin", ratios)


def unmodified_net(name: str, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Torchvision's net up to its last features, with no norms folded into convolutions."""
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    from lobule.methods.rakhlin.encoders import TAPS

    net: nn.Module = create_feature_extractor(get_model(name, weights=None).eval(), {TAPS[name][-1]: "out"})
    net.load_state_dict(weights)
    return net


def relative_difference(actual: DescriptorRows, expected: DescriptorRows) -> float:
    """The largest difference of a value, divided by the largest expected value; extra rows are left out."""
    return float(np.abs(actual[: len(expected)] - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
