"""Training patches from lists of coordinates, such as those that the authors of FW-RD published.

A published list has one line per patch, `slide,x,y`, with the centre of the patch in level-0 pixels; all its
patches are of one class. The file `places.csv` of a bundle lists patches of both classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lobule.errors import ConfigError, TooLarge
from lobule.files import open_url, read_at_most
from lobule.methods.reverse_distillation.budget import PatchBudget, patch_budget
from lobule.methods.reverse_distillation.config import Config
from lobule.training import patch_pools
from lobule.training.job import TrainingJob
from lobule.training.patch_sampling import NORMAL, TUMOUR, Points

LARGEST_FILE = 256 << 20
CLASSES = {"normal": NORMAL, "tumour": TUMOUR, "tumor": TUMOUR}

Centres = dict[int, dict[str, list[tuple[float, float]]]]
"""Class → slide, in lower case → centres of patches in level-0 pixels."""


def read_coords(files: Iterable[str]) -> Centres:
    """Read one list with the column `class`, or two published lists: of normal patches, then of tumour.

    Raises:
        ConfigError: A file is not such a list.
    """
    paths = list(files)
    if len(paths) not in (1, 2):
        raise ConfigError(
            "patches are listed in one file, or in two", expected="normal patches, then tumour patches",
            actual=", ".join(paths),
        )  # fmt: skip
    centres: Centres = {NORMAL: {}, TUMOUR: {}}
    for label, path in zip((NORMAL, TUMOUR), paths, strict=False):
        lines = list(csv.reader(io.StringIO(_text(path))))
        has_classes = bool(lines) and [name.strip() for name in lines[0]] == ["case", "class", "l0_x", "l0_y"]
        if has_classes == (len(paths) == 2):
            raise _not_a_list(path, 1, lines[0] if lines else [], has_classes)
        for number, fields in enumerate(lines[has_classes:], start=1 + has_classes):
            if not fields:
                continue
            try:
                slide, x, y = (fields[0], *fields[2:]) if has_classes else fields
                of_class = CLASSES[fields[1]] if has_classes else label
                centre = (float(x), float(y))
            except (ValueError, KeyError) as error:
                raise _not_a_list(path, number, fields, has_classes) from error
            centres[of_class].setdefault(Path(slide.strip()).stem.lower(), []).append(centre)
    return centres


def _text(path: str) -> str:
    with open_url(path) as file:
        content = read_at_most(file, LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise TooLarge("the list of coordinates is too large", subject=path, expected=f"{LARGEST_FILE} bytes")
    return content.decode("utf-8-sig", "replace")


def _not_a_list(path: str, number: int, fields: list[str], has_classes: bool) -> ConfigError:
    return ConfigError(
        f"line {number} is not a patch",
        subject=path,
        expected="case,class,l0_x,l0_y" if has_classes else "slide,x,y in each line, one file per class",
        actual=",".join(fields)[:80],
        remedy="Pass the list of normal patches, then the list of tumour patches",
    )


def listed_patches(config: Config, job: TrainingJob) -> tuple[Config, PatchBudget]:
    """The patches of the lists in `config.coords`, and the settings with their numbers.

    Raises:
        ConfigError: A listed slide is not a training slide of the cohort, or a centre lies outside its slide.
    """
    centres = read_coords(config.coords)
    names = {case.id.lower(): case.id for case in job.split.train}
    slide_names = {*centres[NORMAL], *centres[TUMOUR]}
    missing = sorted(slide_names - set(names))
    if missing or not slide_names:
        raise ConfigError(
            f"{len(missing)} of {len(slide_names)} listed slides are not in the training cohort",
            subject=job.split.train.path,
            expected="cases of the split 'train' with the names in the list",
            actual=", ".join(missing[:5]),
            remedy="Add these slides to the training split of the cohort, or shorten the list",
        )
    cases = job.split.train.where(lambda case: case.id.lower() in slide_names)
    job.begin_stage("reading the listed slides")
    pool = patch_pools.gather(cases, job.tissue, workers=job.workers, need=(), stains=config.stains)
    sizes = {positions.case.id: positions.l0_size for positions in pool.slides}
    points: dict[int, dict[str, Points]] = {NORMAL: {}, TUMOUR: {}}
    for label, of_slides in centres.items():
        for name, slide_centres in of_slides.items():
            case = names[name]
            if case in sizes:
                points[label][case] = np.array(slide_centres, np.float64)
                outside = (points[label][case] < 0) | (points[label][case] >= tuple(sizes[case]))
                if outside.any():
                    raise ConfigError(
                        "listed centres lie outside the slide", subject=case,
                        expected=f"level-0 pixels of {sizes[case].width} × {sizes[case].height}",
                        actual=str(points[label][case][outside.any(axis=1)][0].tolist()),
                    )  # fmt: skip
    counts = [sum(map(len, points[label].values())) for label in (NORMAL, TUMOUR)]
    if not counts[0]:
        raise ConfigError("the lists contain no normal patch", subject=", ".join(config.coords))
    config = replace(config, normal_patches=counts[0], tumour_patches=counts[1])
    return config, patch_budget(pool, points[NORMAL], points[TUMOUR], config, list(pool.notes))
