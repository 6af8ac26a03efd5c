"""Train, scan and evaluate images through the command line."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from lobule.cohort import Cohort, write_cohort
from tests.cli.conftest import Lobule
from tests.methods.rakhlin.support import cohort_in, painted

SETTINGS = (
    "encoders=squeezenet1_1@features.3", "weights=random", "mpp=1", "sizes=40", "boosting.folds=2",
    "boosting.rounds=4", "boosting.min_data_in_leaf=2",
)  # fmt: skip


def test_images_are_trained_scanned_and_evaluated(lobule: Lobule, tmp_path: Path) -> None:
    manifest, unseen = tmp_path / "train.csv", tmp_path / "unseen.csv"
    images = cohort_in(tmp_path)
    write_cohort(images, manifest)
    unseen_cases = []
    for number, case in enumerate(images.cases[:4]):
        path = tmp_path / f"new{number}.png"
        Image.fromarray(painted(case.label or "", 500 + number)).save(path)
        unseen_cases.append(type(case)(path.stem, path.stem, "image", str(path), label=case.label, mpp=1.0))
    write_cohort(Cohort(tuple(unseen_cases)), unseen)
    arguments = ["train", "rakhlin", str(manifest), "--out", str(tmp_path / "B"), "--device", "cpu"]
    arguments += ["--set", "recipe=quick", *(word for pair in SETTINGS for word in ("--set", pair))]
    plan = json.loads(lobule(*arguments, "--dry-run", "--json").out)
    assert len(plan["train"]) == 16
    assert plan["val"] == []
    done = lobule(*arguments, "--json")
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    assert answer["metrics"]["accuracy"] > 0.5
    results = str(tmp_path / "R")
    scan = lobule("scan", str(tmp_path / "B"), str(unseen), "--out", results, "--set", "scan_augmentations=2")
    assert scan.status == 0, scan.err
    assert "4 complete" in scan.out
    evaluated = lobule("evaluate", results, str(unseen), "--json", "--no-plots")
    assert evaluated.status == 0, evaluated.err
    assert json.loads(evaluated.out)["classes"]["accuracy"]["value"] >= 0.5
    leak = lobule("evaluate", results, str(manifest))
    assert leak.status == 2
    wrong = lobule("scan", str(tmp_path / "B"), str(unseen), "--out", results, "--set", "crops=2")
    assert "cannot be set for a scan" in wrong.err
