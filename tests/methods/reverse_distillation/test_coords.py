"""Training on listed patches: the lists are written here as the authors of FW-RD published theirs."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lobule.cohort import Cohort
from lobule.errors import ConfigError, LobuleError
from lobule.methods.reverse_distillation.coords import read_coords
from lobule.methods.reverse_distillation.train import train
from lobule.training.patch_sampling import NORMAL, TUMOUR
from tests.methods.reverse_distillation.support import CONFIG, MACHINE, TISSUE, painted


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("coords")
    outlined = painted(folder, "tumor_001", (200, 200, 300), 1, "train")
    # A partly outlined slide provides no normal patches by itself, but the authors' lists contain some.
    partial = replace(
        painted(folder, "tumor_034", (500, 300, 260), 2, "train"), attributes={"exhaustive": "no"}
    )
    return Cohort((outlined, partial, painted(folder, "normal_001", None, 3, "train")))


def write_lists(folder: Path) -> tuple[tuple[str, str], dict[str, list[tuple[str, int, int]]]]:
    rng = np.random.default_rng(1)
    patches: dict[str, list[tuple[str, int, int]]] = {"normal": [], "tumour": []}
    for name, (left, top, side) in {"Tumor_001": (200, 200, 300), "Tumor_034": (500, 300, 260)}.items():
        for x, y in rng.integers(40, side - 40, (12, 2)):
            patches["tumour"].append((name, left + int(x), top + int(y)))
        for x, y in rng.integers(70, 150, (15, 2)):
            patches["normal"].append((name, int(x), int(y)))
    files = []
    for label, file in (("normal", "train_good.txt"), ("tumour", "train_bad.txt")):
        files.append(str(folder / file))
        (folder / file).write_text("".join(f"{name},{x},{y}\n" for name, x, y in patches[label]))
    return (files[0], files[1]), patches


def test_a_training_uses_exactly_the_listed_patches(cohort: Cohort, tmp_path: Path) -> None:
    files, patches = write_lists(tmp_path)
    config = replace(CONFIG, coords=files, epochs=1, val_slides=0)
    bundle = train(config, cohort, tmp_path / "bundle", val=None, tissue=TISSUE, machine=MACHINE, seed=3)
    with (tmp_path / "bundle" / "places.csv").open() as file:
        rows = {
            (row["case"], row["class"], float(row["l0_x"]), float(row["l0_y"]))
            for row in csv.DictReader(file)
        }
    expected = {(name.lower(), label, x, y) for label, of_class in patches.items() for name, x, y in of_class}
    assert rows == expected
    assert bundle.provenance["budget"]["normal_patches"] == 30
    assert bundle.provenance["budget"]["of"] == {"tumor_001": [15, 12], "tumor_034": [15, 12]}
    assert bundle.config["loss"] == "focal"
    assert bundle.provenance["train_cases"] == ["tumor_001", "tumor_034"]

    again = read_coords([str(tmp_path / "bundle" / "places.csv")])
    assert {name: len(centres) for name, centres in again[TUMOUR].items()} == {
        "tumor_001": 12,
        "tumor_034": 12,
    }
    assert again[NORMAL] == read_coords(files)[NORMAL]

    (tmp_path / "train_bad.txt").write_text("Tumor_001,300,300\n")
    with pytest.raises(LobuleError):  # another list is another training
        train(config, cohort, tmp_path / "bundle", val=None, tissue=TISSUE, machine=MACHINE, seed=3)


def test_lists_that_do_not_fit_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    (normal, tumour), _ = write_lists(tmp_path)

    def refusal(*files: str) -> str:
        with pytest.raises(ConfigError) as caught:
            config = replace(CONFIG, coords=files, epochs=1, val_slides=0)
            train(config, cohort, tmp_path / "refused", val=None, tissue=TISSUE, machine=MACHINE)
        return str(caught.value)

    Path(tumour).write_text("Tumor_001,300,300\nTumor_070,300,300\n")
    assert "1 of 3 listed slides are not in the training cohort" in refusal(normal, tumour)
    Path(tumour).write_text("Tumor_001,300,3000\n")
    assert "outside the slide" in refusal(normal, tumour)
    Path(tumour).write_text("Tumor_001;300;300\n")
    assert "line 1 is not a patch" in refusal(normal, tumour)
    assert "one file per class" in refusal(normal)
