"""`lobule train`: settings, dry runs, progress lines and the bundle."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lobule.cli.options import as_bytes, parse_settings
from lobule.cli.train import _printed_progress, line_of
from lobule.cohort import write_cohort
from lobule.errors import ConfigError, UsageError
from lobule.methods.scannet import Config
from lobule.settings import parse
from lobule.training.fitting import FitProgress
from tests.cli.conftest import Lobule
from tests.methods.scannet.test_train import Cohort, painted

SETTINGS = (
    "trunk=tiny",
    "weights=random",
    "mpp=0.5",
    "steps=2",
    "batch=4",
    "val-patches=4",
    "rounds=0",
    "augment.hue=0",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-train")
    cases = (painted(folder, "a", (200, 200, 360), 1, "train"), painted(folder, "c", None, 3, "train"))
    write_cohort(Cohort((*cases, painted(folder, "d", (300, 150, 320), 4, "val"))), folder / "train.csv")
    return folder / "train.csv"


def test_training_writes_a_bundle_that_is_not_overwritten(lobule: Lobule, manifest: Path) -> None:
    out = str(manifest.parent / "bundle")
    arguments = ["train", "scannet", str(manifest), "--out", out, "--device", "cpu"]
    arguments += [word for pair in SETTINGS for word in ("--set", pair)]
    plan = lobule(*arguments, "--dry-run", "--json")
    assert json.loads(plan.out)["train"] == ["a", "c"]
    assert json.loads(plan.out)["config"]["augment"]["hue"] == 0
    assert not Path(out).exists()
    done = lobule(*arguments, "--json")
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    assert 0 <= answer["metrics"]["val_auc"] <= 1
    weights = (Path(out) / "weights.safetensors").read_bytes()
    again = lobule(*arguments)
    assert again.status == 0, again.err
    assert "val auc" in again.out
    other = lobule(*arguments, "--set", "steps=3")
    assert other.status == 1
    assert "--fresh" in other.err
    assert (Path(out) / "weights.safetensors").read_bytes() == weights
    assert lobule(*arguments, "--set", "steps=3", "--fresh").status == 0
    assert lobule("info", str(manifest.parent / "a.tif")).status == 0


def test_invalid_training_requests_are_explained(lobule: Lobule) -> None:
    assert "there is no method 'magic'" in lobule("train", "magic", "cohort.csv", "--out", "T").err
    assert "not trained by Lobule" in lobule("train", "classifier", "cohort.csv", "--out", "T").err
    wrong = lobule("train", "scannet", "cohort.csv", "--out", "T", "--set", "stepz=3")
    assert wrong.status == 2
    assert "Did you mean 'steps'" in wrong.err
    empty = lobule(
        "train",
        "scannet",
        "cohort.csv",
        "--out",
        "T",
        "--set",
        "trunk=tiny",
        "--set",
        "weights=random",
        "--device",
        "cpu",
    )
    assert empty.status == 2
    assert "no slide has normal tissue" in empty.err


def test_memory_sizes_are_parsed() -> None:
    sizes = {"2GiB": 2 << 30, "1.5g": 3 << 29, "500MB": 500_000_000, "4096": 4096}
    assert {text: as_bytes(text) for text in sizes} == sizes
    for wrong in ("0", "0GiB", "-1g", "much", ""):
        with pytest.raises(UsageError):
            as_bytes(wrong)


def test_max_ram_reaches_the_training(lobule: Lobule, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    def train(*_: object, **options: object) -> None:
        received.update(options)
        raise ConfigError("stop here")

    monkeypatch.setattr("lobule.api.train", train)
    assert lobule("train", "scannet", "cohort.csv", "--out", "T", "--max-ram", "3GiB").status == 2
    assert received["max_ram"] == 3 << 30
    assert "no memory" in lobule("train", "scannet", "cohort.csv", "--out", "T", "--max-ram", "0").err


def test_settings_take_the_type_of_their_default() -> None:
    settings = parse_settings(
        ("steps=5", "rate=1e-2", "by-site=yes", "classes=benign, cancer", "augment.flips=no")
    )
    config = parse(Config, settings)
    assert (config.steps, config.rate, config.by_site) == (5, 0.01, True)
    assert config.classes == ("benign", "cancer")
    assert config.augment.flips is False
    assert parse(Config, {}) == Config()
    for wrong in ("steps=2.5", "rate=fast", "by_site=maybe", "augment=3", "augment.shine=1", "trunk.x=1"):
        with pytest.raises(ConfigError):
            parse(Config, parse_settings((wrong,)))
    for wrong in ("steps", "=3", " =3"):
        with pytest.raises(UsageError, match="cannot parse the setting"):
            parse_settings((wrong,))


def test_progress_line_shows_the_time_left() -> None:
    assert line_of(FitProgress(stage="finding tissue")) == "finding tissue"
    line = line_of(FitProgress("round 1", 30, 100, 0.25, 0.9, 2.0))
    assert "step 30/100" in line
    assert "about 35 s left" in line


def test_piped_training_prints_stages_and_info_reports_progress(lobule: Lobule, manifest: Path) -> None:
    out = str(manifest.parent / "piped")
    arguments = ["train", "scannet", str(manifest), "--out", out, "--device", "cpu"]
    arguments += [word for pair in SETTINGS for word in ("--set", pair)]
    done = lobule(*arguments)
    assert done.status == 0, done.err
    assert "finding tissue" in done.err.splitlines()
    described = lobule("info", out)
    assert described.status == 0, described.err
    assert "finished" in described.out
    (Path(out) / "model.json").unlink()
    status = json.loads(lobule("info", out, "--json").out)
    assert (status["kind"], status["method"], status["is_finished"], status["is_running"]) == (
        "training", "scannet", False, False,
    )  # fmt: skip
    assert (status["train_cases"], status["val_cases"]) == (2, 1)
    assert max(stage["step"] for stage in status["stages"] if stage["step"] is not None) == 2
    text = lobule("info", str(Path(out) / "training")).out
    assert "interrupted" in text
    assert "step 2 of 2" in text


def test_every_stage_is_printed_once_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    progress = FitProgress()
    with _printed_progress(progress, every_s=60.0):
        for stage in ("reading", "reading", "member 1", "member 2", ""):
            progress.stage = stage
        logging.getLogger("lobule.train").info("a note")
    progress.stage = "after"
    logging.getLogger("lobule.train").info("not shown")
    assert capsys.readouterr().err.splitlines() == ["reading", "member 1", "member 2", "a note"]
