"""Evaluate a reader study: readers, models, the mean of the readers, and readers combined with models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lobule.errors import UsageError
from lobule.evaluation.few_patients import without_intervals
from lobule.evaluation.options import Options
from lobule.files import csv_rows
from lobule.measures.compare import compare_scores
from lobule.measures.estimate import Floats
from lobule.measures.readers import ReaderStudy
from lobule.measures.roc import partial_auc
from lobule.results.result import RESEARCH_USE

TRUTH = ("malignant", "label", "truth")
PATIENT = ("patient", "exam", "case")
READER, MODEL = "reader", "ai"
FORMAT = "lobule-reader-study/1"


def evaluate_readers(
    path: str | Path,
    options: Options | None = None,
    *,
    weights: Sequence[float] = (0.5,),
    max_fpr: float | None = None,
    paired: bool = False,
) -> dict[str, Any]:
    """Measure every reader and model of a reader study.

    Args:
        path: A CSV file with one row per breast (or case). Its columns are the truth (`malignant`, `label`
            or `truth`, 0 or 1); the unit that is resampled for intervals (`patient`, `exam` or `case`);
            readers, whose names begin with `reader`; and models, whose names are `ai` or begin with `ai_`.
        options: Number of resamples and seed.
        weights: Weights of a model in its combination with each reader.
        max_fpr: If given, every row also has the partial area up to this false-positive rate, standardised so
            that chance is 0.5, without an interval.
        paired: Whether every model is compared with every reader, and with the mean of the readers' scores,
            on the same resampled patients.

    Returns:
        The content of `evaluation.json`: one row per reader, model and combination.

    Raises:
        UsageError: The file is not such a table.
    """
    columns = _read(path)
    truth = next((name for name in TRUTH if name in columns), None)
    if truth is None:
        problem = f"no column {' or '.join(TRUTH)} contains the truth"
        raise UsageError(problem, subject=path, actual=", ".join(columns))
    group = next((name for name in PATIENT if name in columns), None)
    labels = _numbers(columns, truth, path)
    if not np.isin(labels, (0, 1)).all():
        raise UsageError(f"the column '{truth}' must contain only 0 and 1", subject=path)
    readers = {name: _numbers(columns, name, path) for name in columns if name.startswith(READER)}
    models = {
        name: _numbers(columns, name, path)
        for name in columns
        if name == MODEL or name.startswith((MODEL + "_", MODEL + "-"))
    }
    if not readers:
        remedy = "Rename the columns of the readers"
        raise UsageError(
            "no column begins with 'reader'", subject=path, actual=", ".join(columns), remedy=remedy
        )
    resampling = (options or Options()).resampling
    study = ReaderStudy.of(labels, readers, None if group is None else columns[group], resampling)
    patients = len(labels) if group is None else len(set(columns[group]))
    mixed = [(name, scores, weight) for name, scores in models.items() for weight in weights]
    rows = [
        *(("reader", row) for row in study.each_reader()),
        *(("model", study.rater(name, scores)) for name, scores in models.items()),
        ("mean", study.mean_of_readers()),
        ("together", study.readers_together()),
        *(("mixed", study.hybrid(scores, weight, f"readers and {name}")) for name, scores, weight in mixed),
    ]
    raters: list[list[Floats]] = [[scores] for scores in (*readers.values(), *models.values())]
    raters += [list(readers.values()), [np.mean(list(readers.values()), axis=0)]]
    raters += [
        [(1 - weight) * reader + weight * scores for reader in readers.values()]
        for _, scores, weight in mixed
    ]
    entries = [{"kind": kind} | row.to_dict() for kind, row in rows]
    if max_fpr is not None:
        for entry, scores_of_row in zip(entries, raters, strict=True):
            entry["partial_auc"] = _mean_partial_area(labels, scores_of_row, max_fpr)
    return {
        "format": FORMAT,
        "research_use": RESEARCH_USE,
        "source": str(path),
        "cases": len(labels),
        "positive": int(labels.sum()),
        "patients": patients,
        "resampled": group or "row",
        "max_fpr": max_fpr,
        "rows": [without_intervals(entry, patients) for entry in entries],
        "comparisons": [
            without_intervals(comparison, patients)
            for comparison in (_comparisons(study, labels, models) if paired else ())
        ],
    }


def _mean_partial_area(labels: Floats, raters: Sequence[Floats], max_fpr: float) -> float | None:
    areas = [partial_auc(labels, scores, max_fpr) for scores in raters]
    defined = [area for area in areas if area is not None]
    return float(np.mean(defined)) if defined else None


def _comparisons(
    study: ReaderStudy, labels: Floats, models: Mapping[str, Floats]
) -> Iterator[dict[str, Any]]:
    """Yield the difference in AUROC of each model and each reader, and of the readers' mean score."""
    compared = {**study.readers, "readers together": np.mean(list(study.readers.values()), axis=0)}
    for model, scores in models.items():
        for reader, reader_scores in compared.items():
            comparison = compare_scores(
                labels, scores, reader_scores, study.patients, resampling=study.resampling
            )
            yield {"model": model, "reader": reader, **comparison.to_dict()}


def _read(path: str | Path) -> Mapping[str, Sequence[str]]:
    try:
        rows = csv_rows(path)
    except ValueError as error:
        raise UsageError("this is not a CSV file", subject=path, actual=str(error)) from error
    if len(rows) < 2:
        raise UsageError("no cases", subject=path, expected="a header and one row per case")
    header, *body = (cells for _, cells in rows)
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise UsageError(f"row {number} has {len(row)} cells under {len(header)} columns", subject=path)
    return {name: [row[index] for row in body] for index, name in enumerate(header)}


def _numbers(columns: Mapping[str, Sequence[str]], name: str, path: str | Path) -> Floats:
    try:
        return np.array(columns[name], dtype=np.float64)
    except ValueError as error:
        raise UsageError(
            f"the column '{name}' must contain a number in every row: {error}", subject=path
        ) from error
