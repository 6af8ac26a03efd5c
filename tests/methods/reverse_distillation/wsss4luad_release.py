"""A small release in the layout of WSSS4LUAD, written with Pillow and without code of Lobule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"tumour": (0, 64, 128), "stroma": (64, 128, 0), "normal": (243, 152, 0), "glass": (255, 255, 255)}


def texture(kind: np.ndarray, seed: int) -> np.ndarray:
    """Pixels of tissue: normal is smooth and pink, the rest has purple stripes, glass is bright."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((*kind.shape, 3))
    stripes = (np.arange(kind.shape[1]) // 5 % 2)[None, :, None] * 70
    pixels[:] = (205, 140, 190)
    striped = np.broadcast_to(np.array((110, 60, 150)) + stripes, pixels.shape)
    pixels = np.where(np.isin(kind, ("tumour", "stroma"))[..., None], striped, pixels)
    pixels = np.where((kind == "glass")[..., None], 245, pixels)
    return (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_release(folder: Path, training: int = 8) -> None:
    for number in range(training):
        for label, tissue in (("[0, 0, 1]", "normal"), ("[1, 1, 0]", "tumour"), ("[1, 0, 0]", "tumour")):
            side = 150 if number == 0 else 230  # the first is too small for a patch
            image = texture(np.full((side, side + 20), tissue), number)
            save(folder / "1.training" / f"10{number}-5-7-{label}.png", image)
    tests = {
        "3.testing/00": halves(450, 650, "normal", "tumour", glass=0),
        "3.testing/01": halves(210, 220, "normal", "stroma", glass=30),
        "3.testing/02": halves(300, 300, "normal", "normal", glass=20),
        "2.validation/00": halves(240, 250, "tumour", "stroma", glass=40),
        "2.validation/01": halves(180, 250, "normal", "tumour", glass=0),
    }
    for seed, (name, kind) in enumerate(tests.items()):
        subset, stem = name.split("/")
        mask = np.zeros((*kind.shape, 3), np.uint8)
        for name_of_kind, colour in COLOURS.items():
            mask[kind == name_of_kind] = colour
        save(folder / subset / "img" / f"{stem}.png", texture(kind, 100 + seed))
        save(folder / subset / "mask" / f"{stem}.png", mask)
        background = np.where(kind == "glass", 255, 0).astype(np.uint8)
        save(folder / subset / "background-mask" / f"{stem}.png", background)


def halves(height: int, width: int, left: str, right: str, glass: int) -> np.ndarray:
    """The kinds of two halves, with a strip of glass at the top."""
    kind = np.full((height, width), left, dtype="<U6")
    kind[:, width // 2 :] = right
    kind[:glass] = "glass"
    return kind
