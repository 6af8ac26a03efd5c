"""The page "Add a method" is complete: its files are those of this folder, and its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lobule.results import open_results
from tests.test_tutorials import run_blocks, statuses, tasks_of

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "add_a_method.md"
FILES = ("toy_method.py", "pyproject.toml", "test_conformance.py")

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")


def block_of(name: str) -> str:
    """The content of the block of the page that has this title."""
    match = re.search(
        rf"^```[a-z]+ title=\"{re.escape(name)}\"\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert match is not None, f"the page has no block with the title {name}"
    return match[1]


def installed(folder: Path) -> dict[str, str]:
    """Install the page's package in a folder as pip does, and return the variables to find it there."""
    site = folder.parent / "site"
    metadata = site / "toy_method-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "toy_method.py").write_text(block_of("toy_method.py"))
    groups = tomllib.loads(block_of("pyproject.toml"))["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in groups.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n")
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("name", FILES)
def test_the_page_shows_the_tested_files(name: str) -> None:
    assert block_of(name) == (HERE / name).read_text()


def test_the_method_is_short() -> None:
    counter = HERE.parents[1] / "scripts" / "code_lines"
    output = subprocess.run(
        [sys.executable, str(counter), str(HERE / "toy_method.py")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(output.split()[0]) < 80


@pytest.mark.pages
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    variables = installed(folder)
    output = run_blocks(PAGE, folder, languages=("sh",), variables=variables)
    assert "window" in output  # `lobule methods toy` lists the settings
    assert statuses(folder / "results") == {"complete"}
    (task,) = tasks_of(folder / "evaluation").values()
    assert 0 <= task["all"]["auroc"]["value"] <= 1
    case = next(iter(open_results(folder / "results").cases()))
    assert case.maps["map"].info.classes == ("tumour",)
