"""Generated plain images of four classes (normal, benign, in situ, invasive), as BACH lays them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image

from lobule.cohort import Cohort, write_cohort
from lobule.errors import ConfigError
from lobule.files import make_folder, write_atomic
from lobule.geometry import Box
from lobule.phantoms.cohorts import members
from lobule.phantoms.layout import drawn_lesion
from lobule.phantoms.noise import generator, mixed
from lobule.phantoms.outlines import blob
from lobule.phantoms.painting import Painter, paint
from lobule.phantoms.phantom import Lesion, SlidePhantom
from lobule.phantoms.stains import rgb_of_words

CLASSES: dict[str, tuple[str, str, str]] = {
    "normal": ("n", "Normal", "normal"),
    "benign": ("b", "Benign", "benign"),
    "in situ": ("is", "InSitu", "in-situ"),
    "invasive": ("iv", "Invasive", "invasive"),
}
"""Label: prefix of the file, folder, scene."""

BACH_SIZE = (2048, 1536)
BACH_MPP = 0.42


def write_images(
    out: str | Path,
    per_class: int,
    *,
    size: tuple[int, int] = BACH_SIZE,
    mpp: float = BACH_MPP,
    seed: int = 0,
    patients: int | None = None,
    sites: int = 1,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    unseen_site: bool = False,
    form: str = "tif",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `per_class` images of each class and return the manifest."""
    if form not in ("tif", "png"):
        raise ConfigError(f"no image form '{form}'", expected="tif or png")
    folder = make_folder(out)
    count = per_class * len(CLASSES)
    # each patient has images of all classes, so that the patient does not give the class away
    people = members(
        count, normal=0.25, patients=patients, sites=sites, split=split, seed=seed, unseen_site=unseen_site
    )
    cases = []
    with ThreadPoolExecutor(threads) as pool:
        for member in people:
            label = list(CLASSES)[(member.index + member.index // len(CLASSES)) % len(CLASSES)]
            prefix, class_folder, _ = CLASSES[label]
            name = f"{prefix}{member.index // len(CLASSES) + 1:03d}"
            path = make_folder(folder / "Photos" / class_folder) / f"{name}.{form}"
            image_seed = mixed(seed, member.index, 0x1A)
            _save(image(label, seed=image_seed, size=size, mpp=mpp, site=member.site, pool=pool), path, mpp)
            cases.append(member.case(name, "image", path, label, mpp))
            if progress is not None:
                progress(member.index + 1, count)
    manifest = folder / "cohort.csv"
    write_cohort(Cohort(tuple(cases)), manifest)
    return manifest


def image(
    label: str,
    *,
    seed: int,
    size: tuple[int, int] = BACH_SIZE,
    mpp: float = BACH_MPP,
    site: int | str = 0,
    pool: ThreadPoolExecutor | None = None,
) -> NDArray[np.uint8]:
    """RGB pixels of one image of a class."""
    if label not in CLASSES:
        raise ConfigError(f"no class '{label}'", expected=f"one of {', '.join(CLASSES)}")
    width, height = size
    lesions = (_invasion(width, height, mpp, seed),) if label == "invasive" else ()
    phantom = SlidePhantom(
        seed, width, height, mpp, site, 1.0, lesions=lesions, organ="breast", scene=CLASSES[label][2]
    )
    painter = Painter(phantom)
    words = paint(painter.block, Box(0, 0, *size), painter.glass, map if pool is None else pool.map)
    return np.ascontiguousarray(rgb_of_words(words))


def _invasion(width: int, height: int, mpp: float, seed: int) -> Lesion:
    """A tumour that fills most of the frame, and often reaches beyond it."""
    rng = generator(seed, 0x1F)
    area = width * height * rng.uniform(0.75, 1.6)
    points = blob(rng, vertices=900, roughness=0.12, elongation=width / height, waves=40) * area**0.5
    points += np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
    cut = shapely.Polygon(points).buffer(0).intersection(shapely.box(0, 0, width, height))
    largest = max(shapely.get_parts(cut), key=shapely.area)
    outline = np.asarray(largest.exterior.coords, np.float64)[:-1]
    return drawn_lesion(outline, mpp, rng)


def _save(pixels: NDArray[np.uint8], path: Path, mpp: float) -> None:
    with write_atomic(path) as temporary:
        if path.suffix == ".png":
            Image.fromarray(pixels).save(temporary)
            return
        tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER", "software": "Lobule"}
        tifffile.imwrite(temporary, pixels, photometric="rgb", metadata=None, **tags)
