"""The tutorials and the Python code of the README run as they are written, on small generated data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lobule.annotations import rasterise, read_annotation
from lobule.bundles import read_bundle
from lobule.cohort import read_cohort
from lobule.geometry import Box
from lobule.phantoms.cohorts import write_slide_cohort
from lobule.phantoms.phantom import SlidePhantom
from lobule.results import open_results
from lobule.stitch import State

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^( *)```(sh|python)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LOBULE = f'#!/bin/sh\nexec "{sys.executable}" -m lobule "$@"\n'

pytestmark = [
    pytest.mark.pages,
    pytest.mark.skipif(not TUTORIALS.is_dir(), reason="the documentation is not beside the tests"),
]


def run_blocks(
    page: Path,
    folder: Path,
    languages: tuple[str, ...] = ("sh", "python"),
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run the shell and Python blocks of a page in order in a folder, and return what they print.

    `variables` are added to the environment.
    """
    programs = folder.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "lobule").write_text(LOBULE)
    (programs / "lobule").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LOBULE_CACHE": str(folder.parent / "cache"),
        "OMP_NUM_THREADS": "1",
        **(variables or {}),
    }
    output = ""
    for indent, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language not in languages:
            continue
        code = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        program = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        process = subprocess.run(
            [*program, code], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, f"{page.name}:\n{code}\n{process.stdout}\n{process.stderr}"
        output += process.stdout
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def statuses(results: Path) -> set[str]:
    return {case.status for case in open_results(results).cases()}


def tasks_of(folder: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    tasks: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(
        (folder / "evaluation.json").read_text()
    )["tasks"]
    return tasks


def test_outlined_slides(folder: Path) -> None:
    run_blocks(TUTORIALS / "outlined_slides.md", folder)
    assert statuses(folder / "results") == {"complete"}
    (task,) = tasks_of(folder / "evaluation").values()
    assert task["all"]["auroc"]["value"] > 0.5  # a short training finds generated tumours
    assert (folder / "evaluation" / "table.csv").exists()


def test_slide_labels(folder: Path) -> None:
    run_blocks(TUTORIALS / "slide_labels.md", folder)
    assert statuses(folder / "results") == {"complete"}
    assert read_bundle(folder / "model").method == "chowder"
    (task,) = tasks_of(folder / "evaluation").values()
    assert 0 <= task["all"]["auroc"]["value"] <= 1  # the encoder of the tutorial has random weights


def test_dicom_exams(folder: Path) -> None:
    run_blocks(TUTORIALS / "dicom_exams.md", folder)
    assert statuses(folder / "calibrated-results") <= {"complete", "partial"}
    assert read_bundle(folder / "calibrated").calibration
    assert {"malignant", "benign"} == set(tasks_of(folder / "evaluation"))


def auc_of_cells(folder: Path, split: str) -> float:
    """Whether the cells inside the outlines of a split score higher than the other cells on tissue."""
    scores, labels = [], []
    for case in read_cohort(folder / "slides" / "cohort.csv").split(split):
        reader = next(iter(open_results(folder / "results").case_folder(case.id).maps.values()))
        layers, states = reader.read()
        rows, columns = states.shape
        inside = np.zeros((rows, columns), bool)
        if case.annotation:
            inside = rasterise(read_annotation(case.annotation), 64, Box(0, 0, columns, rows)) > 0
        scored = states == State.SCORED
        scores.append(layers[reader.info.classes.index("tumour")][scored])
        labels.append(inside[scored])
    return float(roc_auc_score(np.concatenate(labels), np.concatenate(scores)))


def test_own_model(folder: Path) -> None:
    run_blocks(TUTORIALS / "own_model.md", folder)
    assert statuses(folder / "results") == {"complete"}
    assert read_bundle(folder / "bundle").classes == ("normal", "tumour")
    assert tasks_of(folder / "evaluation")
    assert auc_of_cells(folder, "train") > 0.75  # the model is weak on unseen slides: three tumours taught it


def test_every_tutorial_is_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for page in TUTORIALS.glob("*.md"):
        assert f'TUTORIALS / "{page.name}"' in source


def test_the_python_code_of_the_readme_runs(folder: Path) -> None:
    manifest = write_slide_cohort(folder, slides=10, seed=2, like=SlidePhantom(0, 1024, 1024, 1.0), threads=1)
    manifest.rename(folder / "slides.csv")
    output = run_blocks(ROOT / "README.md", folder, languages=("python",))
    assert "(1024, 1024)" in output or "1024" in output
    assert statuses(folder / "results") == {"complete"}
