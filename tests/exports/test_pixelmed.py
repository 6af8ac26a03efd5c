"""PixelMed's validator, which knows the templates 1500 and 4000, reports no error for structured reports."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lobule.cli import COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.testing.export import write_known_results
from tests.exports.test_exams import write_exam_results

JAR = Path("/usr/share/java/pixelmed.jar")
UNLIMITED = [f"-Djdk.xml.xpath{limit}=0" for limit in ("TotalOpLimit", "ExprOpLimit", "ExprGrpLimit")]
"""Its rules have more steps than current versions of Java allow."""


@pytest.fixture(scope="module")
def validations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the validator prints about the report of a slide and of an exam, which run at the same time."""
    if not JAR.exists() or shutil.which("java") is None:
        pytest.skip("PixelMed is not installed: apt-get install libpixelmed-java")
    folder = tmp_path_factory.mktemp("pixelmed")
    slides = write_known_results(folder, ["squares"], incomplete_cases=False)
    (folder / "exams").mkdir()
    exams = write_exam_results(folder / "exams")
    root = LazyGroup("lobule", COMMANDS, help="")
    for results, to in ((slides.path, "dicom-sr"), (exams, "dicom-cad-sr")):
        assert run(root, ["export", str(results), "--to", to, "--out", str(folder / "out")]) == 0
    command = [
        "java",
        *UNLIMITED,
        "-cp",
        f"{JAR}:/usr/share/java/*",
        "com.pixelmed.validate.DicomSRValidator",
    ]
    running = {
        path.name: subprocess.Popen(
            [*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for path in sorted((folder / "out").glob("*.dcm"))
    }
    return {name: process.communicate(timeout=300)[0] for name, process in running.items()}


@pytest.mark.parametrize(
    ("name", "template"), [("squares.sr.dcm", "TID_1500"), ("exam.cad-sr.dcm", "TID_4000")]
)
def test_pixelmed_reports_no_error(name: str, template: str, validations: dict[str, str]) -> None:
    output = validations[name]
    assert "Root Template Validation Complete" in output, output
    assert template in output, output
    assert [line for line in output.splitlines() if line.startswith("Error")] == []


def test_its_version_is_printed(validations: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    query = ["dpkg-query", "-W", "-f", "${Version}", "libpixelmed-java"]
    done = (
        subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
    )
    version = done.stdout if done is not None and done.stdout else "of an unknown version"
    with capsys.disabled():
        print(f"\nPixelMed {version}; {len(validations)} reports")
    assert len(validations) == 2
