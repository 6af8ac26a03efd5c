"""Training-time augmentation of RGB patches: geometry, stains, colour, blur and JPEG, on uint8 arrays.

What is drawn and what is done are apart: `draw` takes the same number of random values whatever the
strengths, so a stream is a function of its generator's seed alone, and `Augmentation.apply` is deterministic.
Stains are a product of table rows, and brightness, saturation, hue and contrast together one affine map, so
that colour costs three gathers and one small matrix product a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, pi, sin
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lobule.color import RGB, STAINS, DensityTables
from lobule.errors import ConfigError

LUMA = np.array([0.299, 0.587, 0.114])
TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths; 0 (or False) switches a kind off. The colour ranges are those of ScanNet's training."""

    flips: bool = True
    quarter_turns: bool = True
    scale: float = 0.1
    """Zoom between 1 / (1 + scale) and 1 + scale."""
    hematoxylin: float = 0.0
    """The stain's amount is multiplied by 1 ± this."""
    eosin: float = 0.0
    brightness: float = 64 / 255
    """Added to all channels: ± this, of the full range."""
    saturation: float = 0.25
    """The distance from grey is multiplied by 1 ± this."""
    hue: float = 0.04
    """Hues are turned by ± this, of the full circle."""
    contrast: float = 0.75
    """The distance from a channel's mean is multiplied by 1 ± this."""
    blur_sigma: float = 0.0
    """The largest sigma in pixels, for `blur_chance` of the patches."""
    blur_chance: float = 0.2
    jpeg_quality: int = 0
    """The lowest quality, up to 95, of a JPEG that `jpeg_chance` of the patches pass through; 0 is off."""
    jpeg_chance: float = 0.2

    def __post_init__(self) -> None:
        for name in ("hematoxylin", "eosin", "saturation", "contrast", "blur_chance", "jpeg_chance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    "an augmentation out of range",
                    subject=name,
                    expected="0 to 1",
                    found=str(getattr(self, name)),
                )
        for name in ("scale", "brightness", "hue", "blur_sigma"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    "an augmentation out of range",
                    subject=name,
                    expected="0 or more",
                    found=str(getattr(self, name)),
                )
        if not 0 <= self.jpeg_quality <= 95:
            raise ConfigError(
                "an augmentation out of range",
                subject="jpeg_quality",
                expected="1 to 95, or 0 for none",
                found=str(self.jpeg_quality),
            )

    def source_side(self, side: int) -> int:
        """The side to read, so that a patch of `side` zoomed out has real pixels to its very edge."""
        return 2 * ceil((side * (1 + self.scale) - side) / 2) + side


NO_AUGMENTATION = AugmentConfig(
    flips=False, quarter_turns=False, scale=0, brightness=0, saturation=0, hue=0, contrast=0
)


@dataclass(frozen=True)
class Augmentation:
    """What is done to one patch; the defaults do nothing."""

    flip: bool = False
    turns: int = 0
    zoom: float = 1.0
    hematoxylin: float = 1.0
    eosin: float = 1.0
    brightness: float = 0.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast: float = 1.0
    blur_sigma: float = 0.0
    jpeg_quality: int = 0

    def apply(self, patch: RGB, side: int | None = None) -> RGB:
        """(H, W, 3) uint8 to (side, side, 3) about its centre, or to its own size without `side`."""
        rows, columns = patch.shape[:2] if side is None else (side, side)
        out = self._coloured_and_turned(np.ascontiguousarray(self._zoomed(patch, rows, columns)))
        if self.blur_sigma > 0:
            out = np.array(Image.fromarray(out).filter(ImageFilter.GaussianBlur(self.blur_sigma)))
        if self.jpeg_quality:
            out = simplejpeg.decode_jpeg(
                simplejpeg.encode_jpeg(out, quality=self.jpeg_quality, colorsubsampling="420")
            )
        return out

    def _turned(self, image: NDArray[Any]) -> NDArray[Any]:
        """A view: quarter turns counter-clockwise, then the flip of left and right."""
        turned = np.rot90(image, self.turns)
        return turned[:, ::-1] if self.flip else turned

    def _zoomed(self, patch: RGB, rows: int, columns: int) -> RGB:
        """The window about the centre that shows as (rows, columns), its edges mirrored where they lack."""
        height, width = rows / self.zoom, columns / self.zoom
        above, before = (patch.shape[0] - height) / 2, (patch.shape[1] - width) / 2
        if self.zoom == 1 and above >= 0 and before >= 0:
            return patch[int(above) : int(above) + rows, int(before) : int(before) + columns]
        margin = ceil(max(0.0, -above, -before))
        if margin:
            patch = np.pad(patch, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
        top, left = above + margin, before + margin
        # Pillow's filter widens as it shrinks: an area mean, not a choice of pixels
        image = Image.fromarray(np.ascontiguousarray(patch))
        right, bottom = min(left + width, image.width), min(top + height, image.height)
        return np.asarray(
            image.resize((columns, rows), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        )

    def _coloured_and_turned(self, patch: RGB) -> RGB:
        stained = (self.hematoxylin, self.eosin) != (1.0, 1.0)
        stretch = self._hue_and_saturation()
        linear = self.contrast * stretch
        if not stained and not self.brightness and np.array_equal(linear, np.eye(3)):
            # a pixel as one item of three bytes is copied several times faster
            turned = np.array(self._turned(patch.view("V3")[..., 0]), order="C")
            return turned.view(np.uint8).reshape(*turned.shape, 3)
        light = self._tables().light(patch.reshape(-1, 3))
        if stained:
            np.clip(light, 0, 256, out=light)
        # light is I + 1; half a level makes the cut at the end a rounding
        offset = 255 * self.brightness + 0.5 - linear.sum(axis=1)
        if self.contrast != 1:
            # as a product, because NumPy's own mean over rows of four is ten times slower
            weights = np.full(len(light), 1 / len(light), np.float32)
            mean = (weights @ light)[:3] - 1
            offset += (1 - self.contrast) * (stretch @ mean)
        affine = np.zeros((4, 4), np.float32)
        affine[:3, :3] = linear.T
        affine[3, :3] = offset
        coloured = light @ affine
        np.clip(coloured, 0, 255, out=coloured)
        turned = self._turned(coloured.reshape(*patch.shape[:2], 4))
        out = np.empty((*turned.shape[:2], 3), np.uint8)
        for channel in range(3):  # plane by plane: three times faster than casting rows of three
            out[..., channel] = turned[..., channel]
        return out

    def _tables(self) -> DensityTables:
        stains = STAINS.T @ np.diag([self.hematoxylin, self.eosin, 1.0]) @ np.linalg.inv(STAINS.T)
        return DensityTables.of(stains, np.float32)

    def _hue_and_saturation(self) -> NDArray[np.float64]:
        """(3, 3): a turn about the grey axis of YIQ after a stretch away from it; greys stay as they are."""
        if not self.hue and self.saturation == 1:
            return np.eye(3)
        angle = 2 * pi * self.hue
        c, s = self.saturation * cos(angle), self.saturation * sin(angle)
        turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        mixed: NDArray[np.float64] = np.linalg.inv(TO_YIQ) @ turn @ TO_YIQ
        return mixed


def draw(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """What happens to the next patch."""
    u = rng.random(13)
    swing = 2 * u - 1
    blurred = u[9] < config.blur_chance
    recoded = config.jpeg_quality and u[11] < config.jpeg_chance
    return Augmentation(
        flip=bool(config.flips and u[0] < 0.5),
        turns=int(4 * u[1]) if config.quarter_turns else 0,
        zoom=float((1 + config.scale) ** swing[2]),
        hematoxylin=float(1 + config.hematoxylin * swing[3]),
        eosin=float(1 + config.eosin * swing[4]),
        brightness=float(config.brightness * swing[5]),
        saturation=float(1 + config.saturation * swing[6]),
        hue=float(config.hue * swing[7]),
        contrast=float(1 + config.contrast * swing[8]),
        blur_sigma=float(config.blur_sigma * u[10]) if blurred else 0.0,
        jpeg_quality=int(config.jpeg_quality + u[12] * (96 - config.jpeg_quality)) if recoded else 0,
    )


def augment(patch: RGB, config: AugmentConfig, rng: np.random.Generator, side: int | None = None) -> RGB:
    """A patch as training sees it; read it `config.source_side(side)` wide for real pixels at its edges."""
    return draw(config, rng).apply(patch, side)
