"""`doctor`: versions of libraries, limits of containers, and checks of files."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from lobule.cli import doctor, machine
from tests.cli.conftest import Lobule


@pytest.mark.parametrize(
    ("have", "least", "is_older"),
    [
        ("4.0.0.6", "4.0.0.6", False),
        ("4.0.0", "4.0.0.6", True),
        ("4.0.1.2", "4.0.0.6", False),
        ("12.2.1", "12.3.0", True),
        ("13.0", "12.3.0", False),
        ("2.11", "2.11.0", False),
        ("2.15.0+cu132", "2.11", False),
        ("2.9.1", "2.11", True),
        ("2026.3.6", "2024.6.1", False),
    ],
)
def test_versions_compare_by_number(have: str, least: str, is_older: bool) -> None:
    assert doctor.older(have, least) is is_older


def test_floors_are_not_below_the_required_versions() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["mammography"]
    required = dict(line.split(">=") for line in lines)
    for floor in doctor.FLOORS:
        assert floor.name in required
        assert not doctor.older(floor.least, required[floor.name]), floor


def test_an_old_library_is_a_failure_with_its_remedy(monkeypatch: pytest.MonkeyPatch, lobule: Lobule) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "11.0.0" if name == "pillow" else "9999")
    done = lobule("doctor", "--no-accelerators")
    assert done.status == 1
    assert "pip install -U pillow" in done.out
    assert "CVE-2026" in done.out


def test_cgroup_limits_of_both_versions(tmp_path: Path) -> None:
    group_folder = tmp_path / "docker" / "abc"
    group_folder.mkdir(parents=True)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "docker" / "cpu.max").write_text("150000 100000\n")
    (group_folder / "cpu.max").write_text("max 100000\n")
    (group_folder / "memory.max").write_text(f"{3 << 30}\n")
    groups = "0::/docker/abc\n"
    assert machine.cgroup_cores(tmp_path, groups) == 1.5
    assert machine.cgroup_memory(tmp_path, groups) == 3 << 30
    version_1 = tmp_path / "v1"
    (version_1 / "cpu").mkdir(parents=True)
    (version_1 / "memory").mkdir()
    (version_1 / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (version_1 / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (version_1 / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.cgroup_cores(version_1, "3:cpu:/\n4:memory:/\n") is None
    assert machine.cgroup_memory(version_1, "3:cpu:/\n4:memory:/\n") is None
    (version_1 / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    assert machine.cgroup_cores(version_1, "3:cpu:/\n") == 0.5


def test_doctor_reports_the_machine_without_torch(lobule: Lobule) -> None:
    data = json.loads(lobule("doctor", "--no-accelerators", "--json").out)
    assert data["accelerators"] is None
    assert 0 < data["cores"]["usable"] <= data["cores"]["machine"]
    assert 0 < data["memory"]["available"] <= data["memory"]["machine"]
    assert data["codecs"]["JPEG8"]


def test_crashing_torch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ASK_TORCH", "import os; os.abort()")
    assert "error" in machine.accelerators()
    monkeypatch.setattr(machine, "_ASK_TORCH", "raise ImportError('no libcuda')")
    assert machine.accelerators()["error"] == "ImportError: no libcuda"
    monkeypatch.setattr(machine, "_ASK_TORCH", "import time; time.sleep(30)")
    assert "did not answer" in machine.accelerators(timeout=0.5)["error"]
    assert Path(sys.executable).exists()


def test_doctor_checks_files(lobule: Lobule, workspace: Path) -> None:
    assert "slide.tif: good (generic-tiff, 2,048 × 1,536 px" in lobule("doctor", "slide.tif").out
    (workspace / "wrong.csv").write_text("case,patient,slide\na,,none.svs\n")
    done = lobule("doctor", "slide.tif", "wrong.csv", "photos/benign/1.png")
    assert done.status == 1
    assert "row 2: the patient is blank" in done.out
    assert "does not say its µm/px" in done.out


def test_damaged_tiles_are_reported_with_their_position(lobule: Lobule, workspace: Path) -> None:
    from tifffile import TiffFile

    data = bytearray((workspace / "slide.tif").read_bytes())
    with TiffFile(workspace / "slide.tif") as file:
        page = file.pages[0]
        columns = -(-page.imagewidth // page.tilewidth)
        start, size = page.dataoffsets[0], page.databytecounts[0]
        last, last_size = page.dataoffsets[columns - 1], page.databytecounts[columns - 1]
    data[start : start + size] = bytes(size)
    data[last : last + last_size] = bytes(last_size)
    (workspace / "holes.tif").write_bytes(data)
    done = lobule("doctor", "holes.tif", "--json")
    assert done.status == 1
    problems = json.loads(done.out)["files"][0]["problems"]
    assert any("Level 0: 2 of" in problem and "column 0, row 0" in problem for problem in problems)
