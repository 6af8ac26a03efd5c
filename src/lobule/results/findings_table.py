"""The findings of a case as Parquet and CSV. A scan imports this module when it writes the first of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lobule.files import csv_text
from lobule.findings import Finding
from lobule.results.arrow_arrays import arrow_array

COLUMNS: dict[str, Any] = {
    "l0_x": pa.int64(),
    "l0_y": pa.int64(),
    "score": pa.float64(),
    "kind": pa.string(),
    "label": pa.string(),
    "size_um": pa.float64(),
    "area_um2": pa.float64(),
    "lesion_class": pa.string(),
    "cells": pa.int64(),
    "box": pa.list_(pa.int64()),
    "polygon": pa.string(),
    "image": pa.string(),
}
"""Columns of a findings table. `polygon` is JSON: polygons of rings of [x, y], the exterior first."""


def findings_tables(findings: Sequence[Finding]) -> tuple[bytes, bytes]:
    """Return the findings as Parquet and as CSV."""
    return _tables(findings) if findings else _empty_tables()


@cache
def _empty_tables() -> tuple[bytes, bytes]:
    return _tables(())


def _tables(findings: Sequence[Finding]) -> tuple[bytes, bytes]:
    rows = [finding.to_dict() for finding in findings]
    for row in rows:
        row.setdefault("image", "slide")
        if "polygon" in row:
            row["polygon"] = json.dumps(row["polygon"], separators=(",", ":"))
    table = pa.table(
        {name: arrow_array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    )
    parquet = io.BytesIO()
    pq.write_table(table, parquet, compression="zstd")
    names = [name for name in COLUMNS if name not in ("box", "polygon")]
    text = csv_text(names, [[row.get(name, "") for name in names] for row in rows])
    return parquet.getvalue(), text.encode(errors="backslashreplace")
