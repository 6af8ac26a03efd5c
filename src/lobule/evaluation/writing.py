"""Write an evaluation: `evaluation.json`, `table.csv` and the plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lobule.evaluation.summary import COLUMNS, measure_rows, reader_table
from lobule.files import make_folder, write_csv, write_json

JSON, TABLE = "evaluation.json", "table.csv"


def write_evaluation(data: Mapping[str, Any], folder: str | Path, *, plots: bool = True) -> list[Path]:
    """Write all files of an evaluation and return their paths; plots need the extra `plots`."""
    root = make_folder(folder)
    figures: list[Path] = []
    if plots:
        from lobule.evaluation.plots import draw_evaluation

        figures = draw_evaluation(data, root)
    write_json(root / JSON, dict(data))
    write_csv(root / TABLE, COLUMNS, measure_rows(data))
    return [root / JSON, root / TABLE, *figures]


def write_reader_study(data: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write a reader study: its values as JSON, and a table for people as CSV."""
    root = make_folder(folder)
    write_json(root / JSON, dict(data))
    header, rows = reader_table(data)
    write_csv(root / TABLE, header, [dict(zip(header, row, strict=True)) for row in rows])
    return [root / JSON, root / TABLE]
