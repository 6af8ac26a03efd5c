"""Where scores and detections come from: a results folder, or a submission in Camelyon16's official forms."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.cohort.labels import polarity
from lobule.errors import CaseError, DamagedResults, NotReadable, ResultsError
from lobule.evaluation.options import Options
from lobule.files import open_url
from lobule.findings import cell_centre, non_maximum_suppression, suppression_radius
from lobule.geometry import Size
from lobule.measures.estimate import Floats
from lobule.results import CaseFolder, MapReader, Results, open_results
from lobule.results.result import UNSCORED
from lobule.stitch import State
from lobule.units import Mpp

DONE = ("complete", "partial")
NOT_THERE = "not scanned"
ANY_SCORE = "*"
"""Under this name a case without a result has the score that the caller gave such cases."""
MAX_CSV_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class Said:
    """What a source says of one case. `detections` are rows of (confidence, l0_x, l0_y)."""

    status: str
    """complete, partial, failed, unscored, unfinished, or not scanned."""
    scores: Mapping[str, float] = field(default_factory=dict)
    detections: Floats | None = None
    size: Size | None = None
    """Of level 0."""
    mpp: Mpp | None = None
    cause: str | None = None
    labels: tuple[str | None, ...] = ()
    """The class of each detection, where a model has several."""

    @property
    def done(self) -> bool:
        return self.status in DONE


class Source(Protocol):
    """Scores and detections by case."""

    @property
    def name(self) -> str: ...

    @property
    def bundle(self) -> Mapping[str, Any] | None:
        """What is known of the model: method, fingerprint; None where nothing is."""
        ...

    def names(self) -> Sequence[str]:
        """Every case that it says anything of."""
        ...

    def said(self, case: Case) -> Said: ...


# -- results ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FromResults:
    """A results folder."""

    results: Results
    options: Options

    @property
    def name(self) -> str:
        return str(self.results.path)

    @property
    def bundle(self) -> Mapping[str, Any] | None:
        facts: Mapping[str, Any] = self.results.settings.get("bundle", {})
        return facts

    def names(self) -> Sequence[str]:
        return list(
            dict.fromkeys([*self.results.planned(), *(case.case_id for case in self.results.cases())])
        )

    def said(self, case: Case) -> Said:
        try:
            return self._said(self.results.case_folder(case.id))
        except (ResultsError, NotReadable) as error:  # a damaged file belongs to its case
            return Said("failed", cause=str(error))

    def _said(self, folder: CaseFolder) -> Said:
        result = folder.result
        if result is None:
            return Said("unfinished" if folder.path.is_dir() else NOT_THERE)
        image: Mapping[str, Any] = next(iter(result.get("images", {}).values()), {})
        size = Size(*image["size"]) if "size" in image else None
        mpp = None if image.get("mpp") is None else Mpp(*image["mpp"])
        if result["status"] == UNSCORED:
            return Said(UNSCORED, size=size, mpp=mpp, cause="; ".join(map(str, result["notes"])))
        if result["status"] not in DONE:
            cause = (result.get("error") or {}).get("message", "no cause was recorded")
            return Said(result["status"], size=size, mpp=mpp, cause=cause)
        scores = {name: float(value) for name, value in result["scores"].items()}
        if self.options.findings == "nms":
            found, labels = _suppressed(folder, self.options)
        else:
            found, labels = _stored(folder)
        kept, cause = _inside(found, size), _partial(result)
        return Said(result["status"], scores, kept, size, mpp, cause, labels)


def _partial(result: Mapping[str, Any]) -> str | None:
    failed = len(result.get("failed", []))
    return f"{failed} fields failed" if failed else None


Detections = tuple[Floats | None, tuple[str | None, ...]]
"""Rows of (confidence, l0_x, l0_y), and their classes where a model has several."""


def _stored(folder: CaseFolder) -> Detections:
    if not (folder.path / "findings.parquet").exists():
        return None, ()
    columns = folder.findings()
    try:
        rows = np.column_stack([columns["score"], columns["l0_x"], columns["l0_y"]]).astype(np.float64)
        if not np.isfinite(rows).all():
            raise ValueError("numbers that are not finite")
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedResults(
            "the findings are damaged",
            subject=folder.path,
            expected="numbers as score, l0_x and l0_y",
            actual=str(error),
        ) from error
    return rows, tuple(columns["label"].tolist()) if "label" in columns else ()


def _suppressed(folder: CaseFolder, options: Options) -> Detections:
    """NCRF's non-maximum suppression of a map, of the class that means tumour."""
    maps = folder.maps
    if not maps:
        return None, ()
    # the densest map says most; a coarse one beside it is where the scan began
    name = options.nms_map or min(maps, key=lambda key: maps[key].info.l0_stride)
    if name not in maps:
        raise ResultsError(f"there is no map '{name}'", subject=folder.path, actual=", ".join(maps))
    stride = maps[name].info.l0_stride
    layer, pending = _layer(maps[name], options)
    for reader in sorted(maps.values(), key=lambda other: other.info.l0_stride):
        # where a dense map was never reached, the coarse one holds
        if options.nms_map is None and pending.any() and reader.info.l0_stride > stride:
            layer, pending = _filled_up(layer, pending, stride, reader, options)
    radius = options.nms_radius or suppression_radius(max(1, round(stride[0])))
    found = non_maximum_suppression(layer, 1, radius=radius, threshold=options.nms_threshold)
    places = [cell_centre(finding.l0_y, finding.l0_x, stride) for finding in found]
    rows = [(finding.score, *place) for finding, place in zip(found, places, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 3), ()


def _layer(reader: MapReader, options: Options) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The scores of tumour, 0 where nothing was scored, and which cells were not reached."""
    scores, states = reader.read()
    layer = np.where(states == State.SCORED, scores[_tumour_class(reader, options)], np.float32(0))
    return layer, states == State.PENDING


def _filled_up(
    layer: NDArray[np.float32],
    pending: NDArray[np.bool_],
    stride: tuple[float, float],
    coarse: MapReader,
    options: Options,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A layer whose pending cells take the score of the coarse cell that they lie in."""
    own, unreached = _layer(coarse, options)
    row, column = np.nonzero(pending)
    coarse_x, coarse_y = coarse.info.l0_stride
    at_row = np.minimum(((row + 0.5) * stride[1] / coarse_y).astype(np.int64), own.shape[0] - 1)
    at_column = np.minimum(((column + 0.5) * stride[0] / coarse_x).astype(np.int64), own.shape[1] - 1)
    out, left = layer.copy(), pending.copy()
    out[row, column], left[row, column] = own[at_row, at_column], unreached[at_row, at_column]
    return out, left


def _tumour_class(reader: MapReader, options: Options) -> int:
    classes = reader.info.classes
    if options.score in classes:
        return classes.index(options.score)
    meant = [index for index, name in enumerate(classes) if polarity(name)]
    if len(classes) == 1 or len(meant) == 1:
        return meant[0] if meant else 0
    raise ResultsError(
        "it is not plain which class of the map is tumour",
        subject=reader.path,
        actual=", ".join(classes),
        remedy="Say it with --score NAME",
    )


def _inside(found: Floats | None, size: Size | None) -> Floats | None:
    """Cells that reach past the edge of a slide have their centre outside; their finding is at the edge."""
    if found is None or size is None:
        return found
    return np.column_stack(
        [found[:, 0], np.clip(found[:, 1], 0, size.width - 1), np.clip(found[:, 2], 0, size.height - 1)]
    )


# -- submissions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FromSubmission:
    """Camelyon16's official forms: a CSV of `name,probability`, and a folder of a detections CSV a slide."""

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

    def said(self, case: Case) -> Said:
        names = [case.id, *([Path(case.path).stem] if case.path else [])]
        name = next((name for name in names if name in self.probabilities or name in self.detections), None)
        if name is None:
            return Said(NOT_THERE)
        found = None
        if name in self.detections:
            try:
                found = read_detections(self.detections[name])
            except (CaseError, ResultsError) as error:
                return Said("failed", cause=str(error))
        if name in self.probabilities:
            return Said("complete", {"score": self.probabilities[name]}, found)
        if self.probabilities or found is None:
            return Said("failed", detections=found, cause="the slide CSV has no probability of it")
        return Said("complete", {"score": float(found[:, 0].max(initial=0.0))}, found)


def read_submission(paths: Sequence[str | Path]) -> FromSubmission:
    """A submission of any of the official forms: the slide CSV, the folder of detections, or both."""
    probabilities: dict[str, float] = {}
    detections: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(path.glob("*.csv"))
            if not files:
                raise ResultsError(
                    "a submission without CSV files", subject=path, expected="one CSV a slide, empty ones too"
                )
            detections |= {file.stem: file for file in files}
        else:
            probabilities |= read_probabilities(path)
    return FromSubmission(tuple(map(str, paths)), probabilities, detections)


def read_probabilities(path: str | Path) -> dict[str, float]:
    """`name,probability` a line; a header is allowed."""
    found: dict[str, float] = {}
    for number, cells in _rows(path):
        if len(cells) != 2:
            raise _bad_line(path, number, "name,probability", cells)
        value = _number(cells[1])
        if value is None and not found and number == 1:
            continue
        if value is None:
            raise _bad_line(path, number, "a probability", cells)
        name = cells[0].removesuffix(".tif")
        if name in found:
            raise _bad_line(path, number, "each slide once", cells)
        found[name] = value
    return found


def read_detections(path: str | Path) -> Floats:
    """`confidence,x,y` a line, no header, x and y whole level-0 pixels; an empty file is no detections."""
    rows = []
    for number, cells in _rows(path):
        confidence = _number(cells[0]) if len(cells) == 3 else None
        whole = all(cell.isascii() and cell.removeprefix("-").isdigit() for cell in cells[1:])
        if confidence is None or not whole:
            raise CaseError(
                f"line {number} is not a detection",
                subject=path,
                expected="confidence,x,y with x and y as whole level-0 pixels, and no header",
                actual=",".join(cells),
            )
        rows.append((confidence, int(cells[1]), int(cells[2])))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _rows(path: str | Path) -> list[tuple[int, list[str]]]:
    with open_url(path) as file:
        data = file.read(MAX_CSV_BYTES)
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        return [
            (number, [cell.strip() for cell in cells])
            for number, cells in enumerate(lines, start=1)
            if any(cell.strip() for cell in cells)
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError("not a CSV file", subject=path, actual=str(error)) from error


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None


def _bad_line(path: str | Path, number: int, expected: str, cells: Sequence[str]) -> ResultsError:
    return ResultsError(f"line {number}", subject=path, expected=expected, actual=",".join(cells))


# -- either -------------------------------------------------------------------------------------------------


def open_source(path: str | Path | Sequence[str | Path], options: Options) -> Source:
    """A results folder, or else a submission."""
    paths = [path] if isinstance(path, str | Path) else list(path)
    if len(paths) == 1 and (Path(paths[0]) / "scan.json").is_file():
        return FromResults(open_results(paths[0]), options)
    return read_submission(paths)


def open_results_source(path: str | Path, options: Options) -> Source:
    """A results folder and nothing else."""
    return FromResults(open_results(path), options)
