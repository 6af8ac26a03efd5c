"""Announces the reads of a pass to slides that are read from object stores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lobule.scanning.contract import Pass, PixelSource
from lobule.slides.slide import Slide


def plan_reads(pass_: Pass, images: Mapping[str, PixelSource], needed: NDArray[np.bool_]) -> None:
    """Let remote slides fetch what the fields of a pass need, in the order in which they are read."""
    fields = pass_.fields
    for index, name in enumerate(fields.images):
        image = images[name]
        if isinstance(image, Slide) and image.is_remote:
            rows = np.flatnonzero((fields.image == index) & needed)
            image.plan_reads(fields.lattices[index], [fields.box(int(row)) for row in rows])
