"""Training-time augmentation of RGB patches: geometry, stains, colour, blur and JPEG, on uint8 arrays.

Drawing and applying an augmentation are separate: `draw` takes the same number of random values whatever the
strengths, so a stream is a function of its generator's seed alone, and `Augmentation.apply` is deterministic.
Brightness, saturation, hue and contrast together are one affine map of RGB. Pillow applies it in a single
call that releases Python's lock, as it does for zoom and rotations. Changes of stains are products of table
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, inf, pi, sin

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lobule.color import RGB, STAINS, DensityTables
from lobule.errors import ConfigError

LUMA = np.array([0.299, 0.587, 0.114])
TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

BLOCK = 8192
"""Number of pixels per block. Such a block fits into the second-level cache, and NumPy computes its matrix
products on the calling thread; further threads would compete with those of the model."""
ONES = np.ones(BLOCK, np.float32)

TURNED = (None, *(getattr(Image.Transpose, f"ROTATE_{degrees}") for degrees in (90, 180, 270)))
"""Operation of Pillow for each number of counter-clockwise quarter turns."""
TURNED_AND_FLIPPED = tuple(
    getattr(Image.Transpose, name)
    for name in ("FLIP_LEFT_RIGHT", "TRANSVERSE", "FLIP_TOP_BOTTOM", "TRANSPOSE")
)
"""The same, followed by a flip of left and right."""


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the augmentations; 0 or False disables one. The colour ranges are those of ScanNet."""

    flips: bool = True
    quarter_turns: bool = True
    scale: float = 0.1
    """Zoom between 1 / (1 + scale) and 1 + scale."""
    hematoxylin: float = 0.0
    """The amount of the stain is multiplied by up to 1 ± this."""
    eosin: float = 0.0
    brightness: float = 64 / 255
    """Up to ± this share of the full range is added to all channels."""
    saturation: float = 0.25
    """The distance from grey is multiplied by up to 1 ± this."""
    hue: float = 0.04
    """Hues are rotated by up to ± this share of the full circle."""
    contrast: float = 0.75
    """The distance from a channel's mean is multiplied by up to 1 ± this."""
    blur_sigma: float = 0.0
    """Largest sigma in pixels. A share `blur_chance` of the patches is blurred."""
    blur_chance: float = 0.2
    jpeg_quality: int = 0
    """Lowest JPEG quality (highest: 95). A share `jpeg_chance` of the patches is compressed; 0 disables
    it."""
    jpeg_chance: float = 0.2

    def __post_init__(self) -> None:
        shares = ("hematoxylin", "eosin", "saturation", "contrast", "blur_chance", "jpeg_chance")
        limits = dict.fromkeys(shares, (1.0, "0 to 1"))
        limits |= dict.fromkeys(("scale", "brightness", "hue", "blur_sigma"), (inf, "0 or more"))
        limits["jpeg_quality"] = (95.0, "1 to 95, or 0 for none")
        for name, (most, expected) in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                problem = "an augmentation strength is out of range"
                raise ConfigError(problem, subject=name, expected=expected, actual=str(value))

    def source_side(self, side: int) -> int:
        """Side to read for a patch of `side`, so that zooming out shows real pixels up to the edges."""
        return 2 * ceil((side * (1 + self.scale) - side) / 2) + side


NO_AUGMENTATION = AugmentConfig(
    flips=False, quarter_turns=False, scale=0, brightness=0, saturation=0, hue=0, contrast=0
)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of one patch; the defaults change nothing."""

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
        """Augment a patch (H, W, 3) and crop its centre to (side, side, 3), or keep its size."""
        rows, columns = patch.shape[:2] if side is None else (side, side)
        if self == NOTHING and rows <= patch.shape[0] and columns <= patch.shape[1]:
            return np.array(_middle(patch, rows, columns))
        image = self._turned(self._coloured(self._zoomed(patch, rows, columns)))
        if self.blur_sigma > 0:
            image = image.filter(ImageFilter.GaussianBlur(self.blur_sigma))
        out = np.array(image)
        if self.jpeg_quality:
            out = simplejpeg.decode_jpeg(
                simplejpeg.encode_jpeg(out, quality=self.jpeg_quality, colorsubsampling="420")
            )
        return out

    def _turned(self, image: Image.Image) -> Image.Image:
        """Counter-clockwise quarter turns, followed by a flip of left and right."""
        transposition = TURNED_AND_FLIPPED[self.turns] if self.flip else TURNED[self.turns]
        return image if transposition is None else image.transpose(transposition)

    def _zoomed(self, patch: RGB, rows: int, columns: int) -> Image.Image:
        """Resize the central window to (rows, columns); pixels outside the patch are mirrored."""
        height, width = rows / self.zoom, columns / self.zoom
        above, before = (patch.shape[0] - height) / 2, (patch.shape[1] - width) / 2
        if self.zoom == 1 and above >= 0 and before >= 0:
            return Image.fromarray(np.ascontiguousarray(_middle(patch, rows, columns)))
        margin = ceil(max(0.0, -above, -before))
        if margin:
            patch = np.pad(patch, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
        top, left = above + margin, before + margin
        # The Hamming filter averages areas when it shrinks, and blurs less than the bilinear filter at the
        # same speed. The bicubic filter takes 1.5 times as long.
        image = Image.fromarray(np.ascontiguousarray(patch))
        right, bottom = min(left + width, image.width), min(top + height, image.height)
        return image.resize((columns, rows), Image.Resampling.HAMMING, box=(left, top, right, bottom))

    def _coloured(self, image: Image.Image) -> Image.Image:
        """Change stains and colours; all colour changes together are one affine map of RGB."""
        stretch = self._hue_and_saturation()
        linear = self.contrast * stretch
        stained = (self.hematoxylin, self.eosin) != (1.0, 1.0)
        if not stained and not self.brightness and np.array_equal(linear, np.eye(3)):
            return image
        light, mean = self._stained(np.asarray(image)) if stained else (None, np.zeros(3))
        if light is None and self.contrast != 1:
            counts = np.array(image.histogram()).reshape(3, 256)
            mean = counts @ np.arange(256) / (image.width * image.height)
        offset = 255 * self.brightness + (1 - self.contrast) * (stretch @ mean)
        if light is None:
            matrix = np.column_stack([linear, offset])
            return image.convert("RGB", tuple(matrix.ravel().tolist()))
        affine = np.zeros((4, 4), np.float32)
        affine[:3, :3] = linear.T
        # Light is I + 1. Adding half a level turns the truncation at the end into rounding.
        affine[3, :3] = offset + 0.5 - linear.sum(axis=1)
        out = np.empty((len(light), 3), np.uint8)
        for start in range(0, len(light), BLOCK):
            coloured = light[start : start + BLOCK] @ affine
            np.clip(coloured, 0, 255, out=coloured)
            for channel in range(3):  # three times faster than casting rows of three
                out[start : start + BLOCK, channel] = coloured[:, channel]
        return Image.fromarray(out.reshape(image.height, image.width, 3))

    def _stained(self, pixels: RGB) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The changed light of the pixels, as rows (R + 1, G + 1, B + 1, 1), and the mean of R, G and B."""
        stains = STAINS.T @ np.diag([self.hematoxylin, self.eosin, 1.0]) @ np.linalg.inv(STAINS.T)
        tables = DensityTables.of(stains, np.float32)
        pixels = pixels.reshape(-1, 3)
        light = np.empty((len(pixels), 4), np.float32)
        total = np.zeros(3)
        for start in range(0, len(pixels), BLOCK):
            block = tables.light(pixels[start : start + BLOCK])
            np.clip(block, 0, 256, out=light[start : start + BLOCK])
            # A product is ten times faster than NumPy's mean over rows of four.
            total += (ONES[: len(block)] @ light[start : start + BLOCK])[:3]
        return light, total / len(pixels) - 1

    def _hue_and_saturation(self) -> NDArray[np.float64]:
        """Matrix (3, 3) that stretches colours away from the grey axis of YIQ and rotates them around it."""
        if not self.hue and self.saturation == 1:
            return np.eye(3)
        angle = 2 * pi * self.hue
        c, s = self.saturation * cos(angle), self.saturation * sin(angle)
        turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        mixed: NDArray[np.float64] = np.linalg.inv(TO_YIQ) @ turn @ TO_YIQ
        return mixed


NOTHING = Augmentation()


def _middle(patch: RGB, rows: int, columns: int) -> RGB:
    top, left = (patch.shape[0] - rows) // 2, (patch.shape[1] - columns) // 2
    return patch[top : top + rows, left : left + columns]


def draw(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Draw the augmentation of the next patch."""
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
    """Augment a training patch. Read it with side `config.source_side(side)` to avoid mirrored edges."""
    return draw(config, rng).apply(patch, side)
