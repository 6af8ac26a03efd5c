"""WSSS4LUAD, FW-RD's second data set: images of lung adenocarcinoma, cut into patches as the authors did.

The release has `1.training` with images whose names end in their labels, `[tumour, stroma, normal]`, and
`2.validation` and `3.testing` with `img`, `mask` and `background-mask`, whose files have equal names. Normal
tissue is orange in a mask and glass is white; tumour and stroma have other colours. A background mask is
white on background.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lobule.errors import DamagedFile, NotReadable
from lobule.files import make_folder, write_text

SIDE = 200
"""Side of a patch in pixels."""
LARGE = 400
"""Images with a longer side are cut into a grid of patches; of others, only the top left patch is used."""
NORMAL_COLOUR, GLASS_COLOUR = (243, 152, 0), (255, 255, 255)
"""RGB; the colours of tumour and stroma are (0, 64, 128) and (64, 128, 0)."""
TISSUE_COLOURS = ((0, 64, 128), (64, 128, 0))
LABELS = re.compile(r"\[([01]), ?([01]), ?([01])\]$")
MPP = 0.5
"""Nominal µm/px of the images in a cohort. The release does not state it; patches are used as they are."""


@dataclass(frozen=True, eq=False)
class LabelledPatch:
    """A patch with its pixel labels."""

    pixels: NDArray[np.uint8]
    anomaly: NDArray[np.bool_]
    """True on tumour and stroma."""
    background: NDArray[np.bool_]

    def masks_at(self, side: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Anomaly and tissue at the size of an anomaly map."""
        return _resized(self.anomaly, side), ~_resized(self.background, side)


def _resized(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    image = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image) > 127


def labelled_patches(folder: str | Path) -> Iterator[LabelledPatch]:
    """Yield the patches of the test and validation images in the order of their names.

    Of a large image with tumour or stroma, patches without normal tissue are left out, as published.
    """
    for subset in ("3.testing", "2.validation"):
        root = Path(folder) / subset
        for path in sorted((root / "mask").glob("*.png")):
            mask = _rgb(path)
            normal = (mask == NORMAL_COLOUR).all(axis=2)
            anomaly = ~(normal | (mask == GLASS_COLOUR).all(axis=2))
            tissue = np.any([(mask == colour).all(axis=2) for colour in TISSUE_COLOURS], axis=0)
            pixels, background = _rgb(root / "img" / path.name), _grey(root / "background-mask" / path.name)
            if pixels.shape != mask.shape or background.shape != mask.shape[:2]:
                raise DamagedFile("image and masks differ in size", subject=path)
            if not (normal.any() or tissue.any()):
                continue
            for rows, columns in _cuts(mask.shape[0], mask.shape[1]):
                cut = anomaly[rows, columns]
                is_large = max(mask.shape[:2]) > LARGE
                if is_large and tissue.any() and (cut.all() or not (normal.any() or cut.any())):
                    continue
                yield LabelledPatch(pixels[rows, columns], cut, background[rows, columns] > 127)


def _cuts(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    if min(height, width) < SIDE:
        return
    large = max(height, width) > LARGE
    for row in range(height // SIDE if large else 1):
        for column in range(width // SIDE if large else 1):
            top, left = row * SIDE, column * SIDE
            yield slice(top, top + SIDE), slice(left, left + SIDE)


def _rgb(path: Path) -> NDArray[np.uint8]:
    return _pixels(path, "RGB")


def _grey(path: Path) -> NDArray[np.uint8]:
    return _pixels(path, "L")


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except FileNotFoundError as error:
        raise NotReadable("an image of WSSS4LUAD is missing", subject=path) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedFile(f"the image cannot be decoded: {error}", subject=path) from error


def write_training(folder: str | Path, out: str | Path) -> dict[str, int]:
    """Write a cohort of the training images and the lists of their patches, as the authors chose them.

    Normal patches come from images with normal tissue only, tumour patches from images with tumour and stroma
    but no normal tissue; the top left 200 px of each image are used, and smaller images are left out.

    Args:
        folder: The release.
        out: Receives `cohort.csv`, `normal.txt` and `tumour.txt`.

    Returns:
        The number of normal and of tumour patches.
    """
    rows: dict[str, list[tuple[str, Path]]] = {"normal": [], "tumour": []}
    for path in sorted((Path(folder) / "1.training").glob("*.png")):
        labels = LABELS.search(path.stem)
        label = {"001": "normal", "110": "tumour"}.get("".join(labels.groups()) if labels else "")
        if label is None:
            continue
        with Image.open(path) as image:
            if min(image.size) >= SIDE:
                rows[label].append((f"image{len(rows['normal']) + len(rows['tumour']):05d}", path.absolute()))
    if not rows["normal"]:
        raise NotReadable(
            "there are no training images of normal tissue", subject=folder,
            expected="1.training with files named …[0, 0, 1].png",
        )  # fmt: skip
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "patient", "split", "label", "slide", "mpp"])
    out = make_folder(out)
    for label, images in rows.items():
        writer.writerows([name, name, "train", label, str(path), MPP] for name, path in images)
        write_text(out / f"{label}.txt", "".join(f"{name},{SIDE // 2},{SIDE // 2}\n" for name, _ in images))
    write_text(out / "cohort.csv", table.getvalue())
    return {label: len(images) for label, images in rows.items()}
