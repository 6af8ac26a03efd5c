"""Every format keeps the contract of `lobule.testing.export`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lobule.errors import UsageError
from lobule.exports import EXPORTS, ExportOptions, find_export
from lobule.exports.run import export_results
from lobule.results import Results
from lobule.testing.export import ExportConformance, write_known_results


class TestQuPath(ExportConformance):
    format = "qupath"


class TestCsv(ExportConformance):
    format = "csv"


class TestCamelyon16(ExportConformance):
    format = "camelyon16"
    says_research_use = False  # The official forms have no place for it.


class TestCamelyon17(ExportConformance):
    format = "camelyon17"
    options = ExportOptions(show_patients=True)
    says_research_use = False
    needs_patients = True

    def test_patients_must_be_allowed(self, known_results: Results, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--show-patients"):
            export_results(known_results.path, "camelyon17", tmp_path / "out")
        assert self.contents(tmp_path / "out") == {}


class TestAsap(ExportConformance):
    format = "asap"


class TestWsinfer(ExportConformance):
    format = "wsinfer"
    volatile = ("run_metadata_*.json", "wsinfer.export.json")


class TestCoco(ExportConformance):
    format = "coco"


class TestGeoParquet(ExportConformance):
    format = "geoparquet"


class TestDsa(ExportConformance):
    format = "dsa"


class TestOmeZarr(ExportConformance):
    format = "ome-zarr"


@pytest.mark.skipif(find_spec("spatialdata") is None, reason="the extra spatialdata is not installed")
class TestSpatialData(ExportConformance):
    format = "spatialdata"


class TestDicomSeg(ExportConformance):
    format = "dicom-seg"


class TestDicomPm(ExportConformance):
    format = "dicom-pm"


class TestDicomAnn(ExportConformance):
    format = "dicom-ann"


class TestDicomSr(ExportConformance):
    format = "dicom-sr"


def test_every_format_is_tested() -> None:
    tested = {one.format for one in ExportConformance.__subclasses__() if one.__module__ == __name__}
    # tests/exports/test_exams.py tests the formats that represent only exams.
    assert tested == {name for name in EXPORTS if "slide" in find_export(name).kinds}


def test_no_format_loads_torch(tmp_path: Path) -> None:
    results = write_known_results(tmp_path, ["squares"], incomplete_cases=False)
    code = f"""
import sys
import pytest

from lobule.errors import UsageError
from lobule.exports import EXPORTS, ExportOptions
from lobule.exports.run import export_results
from lobule.results import Results
needs_more = ("camelyon17", "dicom-cad-sr", "dicom-gsps", "spatialdata")  # other cases, another environment
for name in EXPORTS:
    if name not in needs_more:
        assert export_results({str(results.path)!r}, name, {str(tmp_path)!r} + "/" + name).exported
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
