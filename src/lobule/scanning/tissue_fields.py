"""Fields with tissue of the first cases of a scan, for measuring a model on real input before the scan."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

from lobule.cohort import Case
from lobule.scanning.cards import to_device
from lobule.scanning.contract import Batch, EngineSettings, Predictor, ScanOptions
from lobule.scanning.loader import batches_of, load_batch
from lobule.scanning.open_case import OpenedCase

log = logging.getLogger("lobule.scan")

CASES = 3
"""Cases that are tried before random pixels are used."""
TILES = 32
"""Fields that are read if batches contain several, as those of tiles do. Otherwise one field is read."""


def first_fields(
    predictor: Predictor, cases: Iterable[Case], options: ScanOptions, engine: EngineSettings
) -> list[tuple[Any, Batch]]:
    """Return keys and batches of the first pass of the first case that can be read; empty without one."""
    count = 1 if engine.batch == 1 else -(-TILES // engine.batch)
    for index, case in enumerate(cases):
        if index == CASES:
            break
        try:
            if batches := list(fields_of(predictor, case, options, engine, count)):
                return batches
        except Exception as error:  # The scan reports what is wrong with the case.
            log.debug("Case %s has no field for a measurement: %s", case.id, error)
    return []


def fields_of(
    predictor: Predictor, case: Case, options: ScanOptions, engine: EngineSettings, count: int
) -> Iterator[tuple[Any, Batch]]:
    """Iterate over `count` batches of the first pass of a case, spread evenly over its fields."""
    images = predictor.images(case, options)
    opened = OpenedCase(case, images, options, engine)
    with closing(opened):
        steps = predictor.steps(opened)
        pass_ = next(steps)
        size = pass_.batch or engine.batch
        batches = batches_of(pass_.fields, size)
        sources = {**images, **pass_.sources}
        for number in range(min(count, len(batches))):
            rows = batches[(2 * number + 1) * len(batches) // (2 * min(count, len(batches)))]
            batch = load_batch(pass_, sources, rows, size)
            if len(batch.pixels):
                yield pass_.key, to_device(batch.without_padding(), engine.device)
        steps.close()
