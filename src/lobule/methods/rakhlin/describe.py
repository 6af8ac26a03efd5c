"""From an image to its descriptors: prepared once while reading, then augmented, cropped and encoded."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.cohort import Case
from lobule.color import DensityTables, augment_stains, stain_change
from lobule.errors import ConfigError
from lobule.geometry import Box, Lattice
from lobule.methods.rakhlin.config import Config, DescriptorSet
from lobule.methods.rakhlin.crops import draw_crop, draw_stains, generator_of, prepared, rescaled_sides
from lobule.methods.rakhlin.encoders import Encoder, faster, scaled
from lobule.scanning.contract import Batch, EngineSettings, Pixels, ScanOptions
from lobule.scanning.device import copy_to_device, dtype_of, max_bytes_on, random_batch, working_bytes
from lobule.slides.identity import slide_fingerprint
from lobule.slides.slide import Slide

MOST_PIXELS = {"cpu": 1 << 20}
"""Pixels computed at once, by device; more crops need memory and are not faster on a CPU."""
MANY_PIXELS = 1 << 24


class PreparedImage:
    """An image as the encoders need it: each scale resized and normalised, with all pixels in one row.

    With `keep` the last box is cached, because all augmentations of a plain image use the same one.
    """

    def __init__(self, slide: Slide, config: Config, *, keep: bool) -> None:
        self._slide, self._config, self._keep = slide, config, keep
        self._lock = threading.Lock()
        self._last_prepared: tuple[Box, Pixels, bool] | None = None

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels:
        return self.read(lattice, box)[0]

    def read(self, lattice: Lattice, box: Box) -> tuple[Pixels, bool]:
        """(1, pixels of all scales, 3), and whether the stains of any could not be normalised."""
        if not self._keep:
            return self._prepared(lattice, box)
        with self._lock:
            if self._last_prepared is None or self._last_prepared[0] != box:
                self._last_prepared = (box, *self._prepared(lattice, box))
            return self._last_prepared[1:]

    def _prepared(self, lattice: Lattice, box: Box) -> tuple[Pixels, bool]:
        rgb = self._slide.read_lattice(lattice, box)
        scaled_images = [prepared(rgb, scale, self._config.stains) for scale in self._config.scales]
        degenerate = self._config.stains != "none" and any(one.degenerate for one in scaled_images)
        return np.concatenate([one.rgb.reshape(-1, 3) for one in scaled_images])[None], degenerate


def sides_of(config: Config, box: Box) -> NDArray[np.int64]:
    """(scales, 2): height and width of what a box becomes at each scale."""
    return np.array([rescaled_sides(box.height, box.width, scale) for scale in config.scales], np.int64)


def image_key(case: Case) -> str:
    """The key of the random numbers of an image: its content and, for a region, its box."""
    assert case.path is not None, "images and slides have a file"
    return f"{slide_fingerprint(case.path)} {case.l0_box or ''}"


def random_params(
    config: Config,
    sets: Sequence[DescriptorSet],
    augmentations: Sequence[tuple[str, int]],
    sides: NDArray[np.int64],
    seed: int,
    subject: object,
) -> dict[str, NDArray[np.generic]]:
    """The random parameters of each field for `forward`: stain factors, crops, and the sides of the image.

    A field is identified by (key, augmentation); each set uses a separate random generator.
    """
    stains = np.empty((len(augmentations), len(sets), 2))
    crops = np.empty((len(augmentations), len(sets), config.crops, 5), np.int32)
    for row, (key, augmentation) in enumerate(augmentations):
        for column, set_ in enumerate(sets):
            rng = generator_of(seed, key, set_.name, augmentation)
            stains[row, column] = draw_stains(rng, config.stain_range)
            height, width = (int(side) for side in sides[int(set_.full)])
            for number in range(config.crops):
                crop = draw_crop(rng, height, width, set_.size, subject)
                crops[row, column, number] = (
                    crop.top, crop.left, crop.quarter_turns, crop.flip_vertical, crop.flip_horizontal,
                )  # fmt: skip
    return {"stains": stains, "crops": crops, "sides": np.repeat(sides[None], len(augmentations), axis=0)}


@dataclass(frozen=True)
class EncoderSample:
    """Key of a batch that only measures the speed of the encoders."""


@dataclass(frozen=True)
class Descriptors:
    """Key of the pass that describes augmentations of images."""


class Describer:
    """Encoders on a device: batches of prepared images in, one descriptor a field and set out."""

    def __init__(self, config: Config, encoders: Mapping[int, Encoder]) -> None:
        self.config, self.encoders = config, dict(encoders)
        self.sets = tuple(set_ for set_ in config.sets if set_.encoder in encoders)
        self._plain = {index: faster(encoder) for index, encoder in encoders.items()}
        self._device_nets: dict[int, nn.Module] = {}
        self._engine = EngineSettings()
        self._largest = max(set_.size for set_ in self.sets)

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        """Choose the largest `engine.batch`, counted in crops of the largest size, that fits into memory.

        `max_bytes` limits the memory of the host. On a GPU, the GPU's free memory is the limit instead.
        """
        max_bytes = max_bytes_on(engine.device, max_bytes)
        need = max(self._bytes_of(set_) for set_ in self.sets)
        pixels = MOST_PIXELS.get(engine.device.partition(":")[0], MANY_PIXELS)
        most = min(int(max_bytes / need), pixels // self._largest**2)
        return replace(engine, batch=max(1, most))

    def _bytes_of(self, set_: DescriptorSet) -> int:
        encoder = self.encoders[set_.encoder]
        try:
            return working_bytes(encoder, set_.size, set_.size)
        except RuntimeError as error:
            raise ConfigError(
                f"{encoder.plan.name} cannot take crops of {set_.size} px",
                actual=str(error).splitlines()[0],
                remedy="Choose other sizes: --set sizes=400,650",
            ) from error

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._device_nets = {index: copy_to_device(net, engine) for index, net in self._plain.items()}

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[EncoderSample, Batch]:
        """Crops of the largest size for every encoder, for measuring the nets alone."""
        return EncoderSample(), random_batch(engine, self._largest, self._largest, engine.batch)

    def forward(self, key: EncoderSample | Descriptors, batch: Batch) -> dict[str, Tensor]:
        if isinstance(key, EncoderSample):
            return {str(index): self._encoded(index, batch.pixels) for index in self._device_nets}
        return self.describe(batch)

    def describe(self, batch: Batch) -> dict[str, Tensor]:
        """Prepared images (fields, 1, pixels, 3) to descriptors (fields, d) of each set, on the CPU."""
        fields = len(batch.pixels)
        stains, crops = batch.params["stains"].tolist(), batch.params["crops"].tolist()
        images = [_images(batch.pixels[n], batch.params["sides"][n].tolist()) for n in range(fields)]
        descriptors = {}
        for column, set_ in enumerate(self.sets):
            cut = [
                cropped(image, set_.size, *crop)
                for n in range(fields)
                for image in [self._stained(images[n][int(set_.full)], stains[n][column])]
                for crop in crops[n][column]
            ]
            features = self._encoded(set_.encoder, torch.stack(cut)).cpu().double()
            of_fields = features.view(fields, -1, features.shape[1])
            descriptors[set_.name] = torch.stack(
                [pooled(one, self.config.p_norm) for one in of_fields]
            ).float()
        return descriptors

    def _stained(self, image: Tensor, factors: Sequence[float]) -> Tensor:
        if self.config.stain_range == (1.0, 1.0):
            return image
        return stained(image, *factors)

    def _encoded(self, encoder: int, crops: Tensor) -> Tensor:
        net, plan, dtype = self._device_nets[encoder], self.encoders[encoder].plan, dtype_of(self._engine)
        at_once = int(self._engine.batch * (self._largest / crops.shape[1]) ** 2)
        encoded = [net(scaled(chunk, plan, dtype)).float() for chunk in crops.split(at_once)]
        return torch.cat(encoded)


def _images(pixels: Tensor, sides: Sequence[Sequence[int]]) -> list[Tensor]:
    """Split a row of pixels into its images, one per scale."""
    counts = [height * width for height, width in sides]
    flat_images = pixels[0].split(counts)
    return [
        flat_image.view(height, width, 3)
        for flat_image, (height, width) in zip(flat_images, sides, strict=True)
    ]


def stained(image: Tensor, hematoxylin: float, eosin: float) -> Tensor:
    """`color.augment_stains` on the device of the image; the same bytes on any device."""
    if image.device.type == "cpu":
        return torch.from_numpy(augment_stains(image.numpy(), hematoxylin, eosin))
    return stained_by_tables(image, hematoxylin, eosin)


def stained_by_tables(image: Tensor, hematoxylin: float, eosin: float) -> Tensor:
    """The same by tensors: the products of the same table entries in the same order."""
    tables = DensityTables.of(stain_change(hematoxylin, eosin))
    light: Tensor | None = None
    for channel, table in enumerate((tables.red, tables.green, tables.blue)):
        factors = torch.from_numpy(np.ascontiguousarray(table[:, :3])).to(image.device)
        factor = factors[image[..., channel].int()]
        light = factor if light is None else light.mul_(factor)
    assert light is not None
    return light.sub_(1).clamp_(0, 255).to(torch.uint8)


def cropped(
    image: Tensor, size: int, top: int, left: int, quarter_turns: int, flip_down: int, flip_across: int
) -> Tensor:
    """`crops.Crop.of` of a tensor."""
    crop = torch.rot90(image[top : top + size, left : left + size], quarter_turns, (0, 1))
    axes = [axis for axis, flipped in enumerate((flip_down, flip_across)) if flipped]
    return crop.flip(axes) if axes else crop


def pooled(features: Tensor, p: int) -> Tensor:
    """`crops.p_norm` of a tensor (crops, d), with the signed root."""
    means = (features**p).mean(dim=0)
    return means.sign() * means.abs() ** (1.0 / p)
