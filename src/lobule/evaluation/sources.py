"""Sources of scores and detections: a results folder, or a submission in Camelyon16's official formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case, Cohort
from lobule.cohort.labels import polarity
from lobule.cohort.rows import number_of
from lobule.errors import CaseError, DamagedResults, NotReadable, ResultsError
from lobule.evaluation.options import Options
from lobule.files import csv_rows
from lobule.findings import non_maximum_suppression, suppression_radius
from lobule.geometry import Size
from lobule.measures.estimate import Floats
from lobule.results import CaseFolder, MapReader, Results, open_results
from lobule.results.case_map import CaseMap
from lobule.results.folder import COPY_OF
from lobule.results.result import UNSCORED
from lobule.stitch import State
from lobule.units import Mpp

SCORED_STATUSES = ("complete", "partial")
NOT_SCANNED = "not scanned"
ANY_SCORE = "*"
"""The name of the score that `missing_score` gives to a case without a result."""
MAX_CSV_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class CaseResult:
    """The scores and detections of one case. `detections` has rows of (confidence, l0_x, l0_y)."""

    status: str
    """One of complete, partial, failed, unscored, unfinished, not scanned."""
    scores: Mapping[str, float] = field(default_factory=dict)
    detections: Floats | None = None
    size: Size | None = None
    """The size of level 0."""
    mpp: Mpp | None = None
    cause: str | None = None
    labels: tuple[str | None, ...] = ()
    """The class of each detection, if the model has several classes."""

    @property
    def is_scored(self) -> bool:
        """Whether the source itself has scores of the case; the score `ANY_SCORE` does not count."""
        return self.status in SCORED_STATUSES


class Source(Protocol):
    """Scores and detections by case."""

    @property
    def name(self) -> str: ...

    @property
    def bundle(self) -> Mapping[str, Any] | None:
        """Method and fingerprint of the model; None if the source does not state them."""
        ...

    def names(self) -> Sequence[str]:
        """The names of all cases of the source."""
        ...

    def case_result(self, case: Case) -> CaseResult:
        """The result of one case; a case without a result has a status and a cause instead of scores."""
        ...


# -- results ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultsSource:
    """A results folder."""

    results: Results
    options: Options

    @property
    def name(self) -> str:
        """The path or the URL of the results."""
        url = self.results.path / COPY_OF
        return url.read_text() if url.exists() else str(self.results.path)

    @property
    def bundle(self) -> Mapping[str, Any] | None:
        bundle_metadata: Mapping[str, Any] = self.results.settings.get("bundle", {})
        return bundle_metadata

    def names(self) -> Sequence[str]:
        stored = [case.case_id for case in self.results.cases()]
        return list(dict.fromkeys([*self.results.planned(), *stored]))

    def case_result(self, case: Case) -> CaseResult:
        try:
            return self._read_case(self.results.case_folder(case.id))
        except (ResultsError, NotReadable) as error:  # A damaged file fails its case, not the evaluation.
            return CaseResult("failed", cause=str(error))

    def _read_case(self, folder: CaseFolder) -> CaseResult:
        stored = folder.result
        if stored is None:
            return CaseResult("unfinished" if folder.path.is_dir() else NOT_SCANNED)
        image: Mapping[str, Any] = next(iter(stored.get("images", {}).values()), {})
        size = Size(*image["size"]) if "size" in image else None
        mpp = None if image.get("mpp") is None else Mpp(*image["mpp"])
        if stored["status"] == UNSCORED:
            return CaseResult(UNSCORED, size=size, mpp=mpp, cause="; ".join(map(str, stored["notes"])))
        if stored["status"] not in SCORED_STATUSES:
            cause = (stored.get("error") or {}).get("message", "no cause was recorded")
            return CaseResult(stored["status"], size=size, mpp=mpp, cause=cause)
        scores = {name: float(value) for name, value in stored["scores"].items()}
        if self.options.findings == "nms":
            detections, labels = _suppress_map(folder, self.options)
        else:
            detections, labels = _stored_detections(folder)
        clipped, failed = _clip_to_slide(detections, size), len(stored.get("failed", []))
        cause = f"{failed} fields failed" if failed else None
        return CaseResult(stored["status"], scores, clipped, size, mpp, cause, labels)


Detections = tuple[Floats | None, tuple[str | None, ...]]
"""Rows of (confidence, l0_x, l0_y), and their classes if the model has several."""


def _stored_detections(folder: CaseFolder) -> Detections:
    if not (folder.path / "findings.parquet").exists():
        return None, ()
    columns = folder.findings()
    try:
        rows = np.column_stack([columns["score"], columns["l0_x"], columns["l0_y"]]).astype(np.float64)
        if not np.isfinite(rows).all():
            raise ValueError("numbers that are NaN or infinite")
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedResults(
            "the findings are damaged",
            subject=folder.path,
            expected="finite numbers in the columns score, l0_x and l0_y",
            actual=str(error),
        ) from error
    return rows, tuple(columns["label"].tolist()) if "label" in columns else ()


def _suppress_map(folder: CaseFolder, options: Options) -> Detections:
    """The detections of NCRF's non-maximum suppression on the tumour class of a map."""
    maps = folder.maps
    if not maps:
        return None, ()
    finest = densest_map(folder, options)
    assert finest is not None
    stride = finest.info.l0_stride
    layer, pending = _tumour_layer(finest, options)
    for reader in sorted(maps.values(), key=lambda other: other.info.l0_stride):
        # Cells that the fine map did not reach take the score of the coarse map.
        if options.nms_map is None and pending.any() and reader.info.l0_stride > stride:
            layer, pending = _fill_pending(layer, pending, stride, reader, options)
    radius = options.nms_radius or suppression_radius(max(1, round(stride[0])))
    maxima = non_maximum_suppression(layer, stride, radius=radius, threshold=options.nms_threshold)
    rows = [(finding.score, finding.l0_x, finding.l0_y) for finding in maxima]
    return np.array(rows, dtype=np.float64).reshape(-1, 3), ()


def densest_map(folder: CaseFolder, options: Options) -> MapReader | None:
    """The map that is used, by default the finest one; None if the results have no map.

    A scan may also store a coarse map from its first pass.
    """
    maps = folder.maps
    if not maps:
        return None
    name = options.nms_map or min(maps, key=lambda key: maps[key].info.l0_stride)
    if name not in maps:
        raise ResultsError(f"the results have no map '{name}'", subject=folder.path, actual=", ".join(maps))
    return maps[name]


def _tumour_layer(reader: MapReader, options: Options) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The tumour scores of a map, 0 in cells without a score, and which cells are still pending."""
    scores, states = reader.read()
    layer = np.where(states == State.SCORED, scores[tumour_class(reader, options)], np.float32(0))
    return layer, states == State.PENDING


def _fill_pending(
    layer: NDArray[np.float32],
    pending: NDArray[np.bool_],
    stride: tuple[float, float],
    coarse: MapReader,
    options: Options,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A copy of a layer whose pending cells have the score of the coarse cell around them."""
    coarse_layer, unreached = _tumour_layer(coarse, options)
    row, column = np.nonzero(pending)
    coarse_x, coarse_y = coarse.info.l0_stride
    last_row, last_column = (side - 1 for side in coarse_layer.shape)
    at_row = np.minimum(((row + 0.5) * stride[1] / coarse_y).astype(np.int64), last_row)
    at_column = np.minimum(((column + 0.5) * stride[0] / coarse_x).astype(np.int64), last_column)
    filled, still_pending = layer.copy(), pending.copy()
    filled[row, column] = coarse_layer[at_row, at_column]
    still_pending[row, column] = unreached[at_row, at_column]
    return filled, still_pending


def tumour_class(reader: MapReader, options: Options) -> int:
    """The index of the class of a map that means tumour."""
    classes = reader.info.classes
    if options.score in classes:
        return classes.index(options.score)
    meant = [index for index, name in enumerate(classes) if polarity(name)]
    if len(classes) == 1 or len(meant) == 1:
        return meant[0] if meant else 0
    raise ResultsError(
        "cannot tell which class of the map is tumour",
        subject=reader.path,
        actual=", ".join(classes),
        remedy="Name the class with --score NAME",
    )


def _clip_to_slide(detections: Floats | None, size: Size | None) -> Floats | None:
    """Move detections outside the slide to its edge.

    A cell at the edge of a slide may have its centre outside.
    """
    if detections is None or size is None:
        return detections
    positions = np.clip(detections[:, 1:], 0, [size.width - 1, size.height - 1])
    return np.column_stack([detections[:, 0], positions])


# -- submissions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SubmissionSource:
    """Camelyon16's official formats: a CSV of `name,probability`, and a folder of detections per slide."""

    paths: tuple[str, ...]
    probabilities: Mapping[str, float]
    detections: Mapping[str, Path]

    @property
    def name(self) -> str:
        return ", ".join(self.paths)

    @property
    def bundle(self) -> Mapping[str, Any] | None:
        return None

    def names(self) -> Sequence[str]:
        return sorted({*self.probabilities, *self.detections})

    def case_result(self, case: Case) -> CaseResult:
        names = [case.id, *([Path(case.path).stem] if case.path else [])]
        name = next((name for name in names if name in self.probabilities or name in self.detections), None)
        if name is None:
            return CaseResult(NOT_SCANNED)
        detections = None
        if name in self.detections:
            try:
                detections = read_detections(self.detections[name])
            except (CaseError, ResultsError) as error:
                return CaseResult("failed", cause=str(error))
        if name in self.probabilities:
            return CaseResult("complete", {"score": self.probabilities[name]}, detections)
        if self.probabilities or detections is None:
            cause = "the slide CSV has no probability for this slide"
            return CaseResult("failed", detections=detections, cause=cause)
        return CaseResult("complete", {"score": float(detections[:, 0].max(initial=0.0))}, detections)


def read_submission(paths: Sequence[str | Path]) -> SubmissionSource:
    """Read a submission in the official formats: the slide CSV, the folder of detections, or both."""
    probabilities: dict[str, float] = {}
    detections: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(path.glob("*.csv"))
            if not files:
                raise ResultsError(
                    "the submission contains no CSV files",
                    subject=path,
                    expected="one CSV file per slide, empty for a slide without detections",
                )
            detections |= {file.stem: file for file in files}
        else:
            probabilities |= read_probabilities(path)
    return SubmissionSource(tuple(map(str, paths)), probabilities, detections)


def read_probabilities(path: str | Path) -> dict[str, float]:
    """Read the probability of each slide. Each line is `name,probability`; a header is allowed."""
    probabilities: dict[str, float] = {}
    for number, cells in _rows(path):
        if len(cells) != 2:
            raise _bad_line(path, number, "name,probability", cells)
        value = number_of(cells[1])
        if value is None and not probabilities and number == 1:
            continue
        if value is None:
            raise _bad_line(path, number, "a probability", cells)
        name = cells[0].removesuffix(".tif")
        if name in probabilities:
            raise _bad_line(path, number, "one line per slide", cells)
        probabilities[name] = value
    return probabilities


def read_detections(path: str | Path) -> Floats:
    """Read the detections of a slide, as rows of (confidence, l0_x, l0_y).

    Each line is `confidence,x,y` with x and y in whole level-0 pixels, without a header. A slide without
    detections has an empty file.
    """
    rows = []
    for number, cells in _rows(path):
        confidence = number_of(cells[0]) if len(cells) == 3 else None
        whole_coordinates = all(cell.isascii() and cell.removeprefix("-").isdigit() for cell in cells[1:])
        if confidence is None or not whole_coordinates:
            raise CaseError(
                f"line {number} is not a detection",
                subject=path,
                expected="confidence,x,y with x and y as whole level-0 pixels, and no header",
                actual=",".join(cells),
            )
        rows.append((confidence, int(cells[1]), int(cells[2])))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _rows(path: str | Path) -> list[tuple[int, list[str]]]:
    try:
        return csv_rows(path, MAX_CSV_BYTES)
    except ValueError as error:
        raise ResultsError("this is not a CSV file", subject=path, actual=str(error)) from error


def _bad_line(path: str | Path, number: int, expected: str, cells: Sequence[str]) -> ResultsError:
    return ResultsError(f"line {number} is invalid", subject=path, expected=expected, actual=",".join(cells))


# -- either -------------------------------------------------------------------------------------------------


def open_source(path: str | Path | Sequence[str | Path], options: Options) -> Source:
    """Open a results folder or a submission."""
    paths = [path] if isinstance(path, str | Path) else list(path)
    if len(paths) == 1 and (Path(paths[0]) / "scan.json").is_file():
        return ResultsSource(open_results(paths[0]), options)
    return read_submission(paths)


def open_results_source(path: str | Path, options: Options) -> Source:
    """Open a results folder; a submission is an error."""
    return ResultsSource(open_results(path), options)


def read_cases(
    source: Source, cohort: Cohort, options: Options, map_cases: CaseMap
) -> list[tuple[Case, CaseResult]]:
    """Return each case with its result."""
    results = map_cases(source.case_result, cohort.cases)
    return [
        (case, _with_missing_score(result, options))
        for case, result in zip(cohort.cases, results, strict=True)
    ]


def _with_missing_score(result: CaseResult, options: Options) -> CaseResult:
    """Give a case without a result the score `options.missing_score` and no detections."""
    if result.is_scored or options.missing_score is None:
        return result
    no_detections = np.zeros((0, 3))
    return replace(result, scores={ANY_SCORE: options.missing_score}, detections=no_detections)
