"""Compute the descriptors of an image.

An image is resized and normalised once, when it is read. Each augmentation of it is then cropped and encoded.
"""

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
from lobule.methods.rakhlin.crops import (
    draw_crop,
    draw_stains,
    generator_of,
    rescaled_sides,
    resize_and_normalise,
)
from lobule.methods.rakhlin.encoders import Encoder, scale_pixels, with_folded_norms
from lobule.scanning.contract import Batch, EngineSettings, Pixels, ScanOptions
from lobule.scanning.device import copy_to_device, dtype_of, random_batch, working_bytes
from lobule.slides.identity import slide_fingerprint
from lobule.slides.slide import Slide

MAX_PIXELS_ON_CPU = 1 << 20
"""Largest number of crop pixels in a batch on a CPU; larger batches need more memory and are not faster."""
MAX_PIXELS_ON_GPU = 1 << 24
"""Largest number of crop pixels in a batch on any other device."""


class PreparedImage:
    """An image source for the scanner: reads a box, and resizes and normalises it at each scale.

    The pixels of all scales are returned as one row. With `cache_last_box`, the last box that was read is
    cached, because all augmentations of a plain image use the same box.
    """

    def __init__(self, slide: Slide, config: Config, *, cache_last_box: bool) -> None:
        self._slide, self._config, self._cache_last_box = slide, config, cache_last_box
        self._lock = threading.Lock()
        self._last_prepared: tuple[Box, Pixels, bool] | None = None

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels:
        """Return the pixels of all scales: (1, pixels, 3)."""
        return self.read(lattice, box)[0]

    def read(self, lattice: Lattice, box: Box) -> tuple[Pixels, bool]:
        """Return the pixels of all scales, and whether the stains could not be normalised at any scale."""
        if not self._cache_last_box:
            return self._prepare(lattice, box)
        with self._lock:
            if self._last_prepared is None or self._last_prepared[0] != box:
                self._last_prepared = (box, *self._prepare(lattice, box))
            return self._last_prepared[1:]

    def _prepare(self, lattice: Lattice, box: Box) -> tuple[Pixels, bool]:
        rgb = self._slide.read_lattice(lattice, box)
        images = [resize_and_normalise(rgb, scale, self._config.stains) for scale in self._config.scales]
        degenerate = self._config.stains != "none" and any(image.degenerate for image in images)
        return np.concatenate([image.rgb.reshape(-1, 3) for image in images])[None], degenerate


def scaled_sides(config: Config, box: Box) -> NDArray[np.int64]:
    """Return the height and width of a box at each scale: (scales, 2)."""
    return np.array([rescaled_sides(box.height, box.width, scale) for scale in config.scales], np.int64)


def image_key(case: Case) -> str:
    """Return what identifies an image to its random generators: its content and, for a region, its box."""
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
    """Draw the parameters that `Describer.describe` needs for each field.

    Args:
        config: Range of the stain factors, and number of crops.
        sets: The descriptor sets. Each set of each field has a separate random generator.
        augmentations: For each field, the `image_key` of its image and the number of its augmentation.
        sides: Height and width of the image at each scale.
        seed: Seed of all generators.
        subject: The file, for the error that the image is too small.

    Returns:
        "stains": the factors of hematoxylin and eosin (fields, sets, 2).
        "crops": the arguments of `crop_tensor` after the size (fields, sets, crops, 5).
        "sides": the sides, repeated for each field (fields, scales, 2).
    """
    stains = np.empty((len(augmentations), len(sets), 2))
    crops = np.empty((len(augmentations), len(sets), config.crops, 5), np.int32)
    for row, (key, augmentation) in enumerate(augmentations):
        for column, set_ in enumerate(sets):
            rng = generator_of(seed, key, set_.name, augmentation)
            stains[row, column] = draw_stains(rng, config.stain_range)
            height, width = (int(side) for side in sides[set_.scale_index])
            for number in range(config.crops):
                crop = draw_crop(rng, height, width, set_.size, subject)
                crops[row, column, number] = (
                    crop.top, crop.left, crop.quarter_turns, crop.flip_vertical, crop.flip_horizontal,
                )  # fmt: skip
    return {"stains": stains, "crops": crops, "sides": np.repeat(sides[None], len(augmentations), axis=0)}


@dataclass(frozen=True)
class EncoderSample:
    """Key of a batch that serves only to measure the speed of the encoders."""


@dataclass(frozen=True)
class DescriptorPass:
    """Key of the pass that computes descriptors of augmented images."""


class Describer:
    """Computes one descriptor per field and set from batches of `PreparedImage` pixels.

    It is the model of the scanner when the scan computes only descriptors.
    """

    def __init__(self, config: Config, encoders: Mapping[int, Encoder]) -> None:
        self.config, self.encoders = config, dict(encoders)
        self.sets = tuple(set_ for set_ in config.sets if set_.encoder in encoders)
        self._folded_encoders = {index: with_folded_norms(encoder) for index, encoder in encoders.items()}
        self._device_encoders: dict[int, nn.Module] = {}
        self._engine = EngineSettings()
        self._largest_crop = max(set_.size for set_ in self.sets)

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        """Choose the largest `engine.batch`, counted in crops of the largest size, that fits into memory."""
        bytes_per_crop = max(self._bytes_per_crop(set_) for set_ in self.sets)
        max_pixels = MAX_PIXELS_ON_CPU if engine.device.startswith("cpu") else MAX_PIXELS_ON_GPU
        max_crops = min(int(max_bytes / bytes_per_crop), max_pixels // self._largest_crop**2)
        return replace(engine, batch=max(1, max_crops))

    def _bytes_per_crop(self, set_: DescriptorSet) -> int:
        encoder = self.encoders[set_.encoder]
        try:
            side = encoder.plan.input_side(set_.size)
            return working_bytes(encoder, side, side)
        except RuntimeError as error:
            raise ConfigError(
                f"{encoder.plan.name} cannot take crops of {set_.size} px",
                actual=str(error).splitlines()[0],
                remedy="Choose other sizes: --set sizes=400,650",
            ) from error

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._device_encoders = {
            index: copy_to_device(net, engine) for index, net in self._folded_encoders.items()
        }

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[EncoderSample, Batch]:
        """Return random crops of the largest size, to measure the encoders without augmentation."""
        return EncoderSample(), random_batch(engine, self._largest_crop, self._largest_crop, engine.batch)

    def forward(self, key: EncoderSample | DescriptorPass, batch: Batch) -> dict[str, Tensor]:
        if isinstance(key, EncoderSample):
            return {str(index): self._encode(index, batch.pixels) for index in self._device_encoders}
        return self.describe(batch)

    def describe(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the descriptors of each set, (fields, d) on the CPU.

        The pixels of the batch are (fields, 1, pixels, 3) from `PreparedImage`; its parameters are those of
        `random_params`.
        """
        fields = len(batch.pixels)
        stains, crops = batch.params["stains"].tolist(), batch.params["crops"].tolist()
        images = [_split_scales(batch.pixels[n], batch.params["sides"][n].tolist()) for n in range(fields)]
        descriptors = {}
        for column, set_ in enumerate(self.sets):
            crop_pixels = [
                crop_tensor(image, set_.size, *crop)
                for n in range(fields)
                for image in [self.augment(images[n][set_.scale_index], stains[n][column])]
                for crop in crops[n][column]
            ]
            features = self._encode(set_.encoder, torch.stack(crop_pixels)).cpu().double()
            features_by_field = features.view(fields, -1, features.shape[1])
            descriptors[set_.name] = torch.stack(
                [p_norm_tensor(field_features, self.config.p_norm) for field_features in features_by_field]
            ).float()
        return descriptors

    def augment(self, image: Tensor, stain_factors: Sequence[float]) -> Tensor:
        """Multiply the stains of an image, unless the settings switch stain augmentation off."""
        if self.config.stain_range == (1.0, 1.0):
            return image
        return augment_stains_of_tensor(image, *stain_factors)

    def _encode(self, encoder: int, crops: Tensor) -> Tensor:
        net, plan, dtype = self._device_encoders[encoder], self.encoders[encoder].plan, dtype_of(self._engine)
        # Smaller crops are computed in larger batches with about the same number of pixels.
        batch = int(self._engine.batch * (self._largest_crop / crops.shape[1]) ** 2)
        features = [net(scale_pixels(chunk, plan, dtype)).float() for chunk in crops.split(batch)]
        return torch.cat(features)


def _split_scales(pixels: Tensor, sides: Sequence[Sequence[int]]) -> list[Tensor]:
    """Split the row of pixels of a field into its images, one per scale."""
    counts = [height * width for height, width in sides]
    flat_images = pixels[0].split(counts)
    return [
        flat_image.view(height, width, 3)
        for flat_image, (height, width) in zip(flat_images, sides, strict=True)
    ]


def augment_stains_of_tensor(image: Tensor, hematoxylin: float, eosin: float) -> Tensor:
    """Apply `color.augment_stains` to a tensor on any device. The result is the same on every device."""
    if image.device.type == "cpu":
        return torch.from_numpy(augment_stains(image.numpy(), hematoxylin, eosin))
    return augment_stains_by_tables(image, hematoxylin, eosin)


def augment_stains_by_tables(image: Tensor, hematoxylin: float, eosin: float) -> Tensor:
    """Compute `color.augment_stains` with tensor operations.

    The same table entries are multiplied in the same order, so that the bytes are the same.
    """
    tables = DensityTables.of(stain_change(hematoxylin, eosin))
    light: Tensor | None = None
    for channel, table in enumerate((tables.red, tables.green, tables.blue)):
        factors = torch.from_numpy(np.ascontiguousarray(table[:, :3])).to(image.device)
        factor = factors[image[..., channel].int()]
        light = factor if light is None else light.mul_(factor)
    assert light is not None
    return light.sub_(1).clamp_(0, 255).to(torch.uint8)


def crop_tensor(
    image: Tensor,
    size: int,
    top: int,
    left: int,
    quarter_turns: int,
    flip_vertical: int,
    flip_horizontal: int,
) -> Tensor:
    """Cut a crop from a tensor, as `crops.Crop.of` cuts it from an array."""
    crop = torch.rot90(image[top : top + size, left : left + size], quarter_turns, (0, 1))
    axes = [axis for axis, is_flipped in enumerate((flip_vertical, flip_horizontal)) if is_flipped]
    return crop.flip(axes) if axes else crop


def p_norm_tensor(features: Tensor, p: int) -> Tensor:
    """Pool the features of crops (crops, d) into (d,), as `crops.p_norm` does with signed roots."""
    means = (features**p).mean(dim=0)
    return means.sign() * means.abs() ** (1.0 / p)
