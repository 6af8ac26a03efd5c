"""Scans of slides with the model that a training has trained so far."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lobule.cohort import Case, Cohort
from lobule.files import read_json, write_json
from lobule.results.folder import open_results
from lobule.results.maps import MapReader
from lobule.scanning.contract import Predictor, ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.tissue import TissueConfig

P = TypeVar("P", bound=Predictor)


@dataclass(frozen=True)
class ScannedMaps:
    """The map of each case that could be scanned, and the cause for each of the others."""

    maps: Mapping[str, MapReader]
    failed: Mapping[str, str]

    def notes(self, text: str) -> list[str]:
        """Return a note for each case that could not be scanned; `text` says what it is missing from."""
        return [f"{case}: {text}: {cause}" for case, cause in self.failed.items()]


@dataclass(frozen=True, eq=False)
class TrainingScan(Generic[P]):
    """A model that scans slides during its training, the folder of the results, and the resources."""

    predictor: P
    method: str
    fingerprint: str
    """Identifies the weights: an interrupted scan is only continued with the same weights."""
    folder: Path
    tissue: TissueConfig | None
    machine: Machine

    @contextmanager
    def maps(self, cases: Sequence[Case], **options: Any) -> Iterator[ScannedMaps]:
        """Scan cases, each of which gets one map, and delete the results at the end of the `with` block.

        Args:
            cases: The cases.
            **options: Fields of `ScanOptions`.
        """
        results = self.folder / "scan"
        bundle = {"method": self.method, "fingerprint": self.fingerprint, "classes": []}
        scan_options = ScanOptions(tissue=self.tissue, **options)
        report = scan(self.predictor, bundle, Cohort(tuple(cases)), results, scan_options, self.machine)
        stored, scanned = open_results(results), [case for case in cases if case.id not in report.failed]
        maps = {case.id: next(iter(stored.case_folder(case.id).maps.values())) for case in scanned}
        yield ScannedMaps(maps, report.failed)
        shutil.rmtree(results, ignore_errors=True)

    def recorded(
        self,
        name: str,
        cases: Sequence[Case],
        summarise: Callable[[ScannedMaps], dict[str, Any]],
        *,
        require_all: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Scan cases once, and store a summary of their maps in the JSON file `name` of the folder.

        A later call reads this file. With `require_all`, it is only written if every case could be scanned,
        so that the next training tries the others again.
        """
        record = self.folder / name
        if not record.exists():
            with self.maps(cases, **options) as scanned:
                summary = summarise(scanned)
                if require_all and scanned.failed:
                    return summary
                write_json(record, summary)
        stored: dict[str, Any] = read_json(record)
        return stored
