"""The folder of a training: creating, resuming and refusing it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, ModelError, ResultsError
from lobule.geometry import Box
from lobule.training.division import TrainingSplit
from lobule.training.training_folder import begun_training

NOBODY = TrainingSplit(Cohort(()), Cohort(()))


@dataclass(frozen=True)
class Settings:
    """A method's, of which an earlier version knew only the first."""

    steps: int = 100
    pool: str = "mean"
    augment: dict[str, float] = field(default_factory=lambda: {"hue": 0.1, "turns": 1.0})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def begin(
    out: Path, config: Settings = Settings(), *, resume: bool = False, fresh: bool = False, seed: int = 0
) -> Path:
    with begun_training(out, config, NOBODY, also={"seed": seed}, resume=resume, fresh=fresh) as folder:
        return folder


def test_training_of_an_earlier_version_can_be_resumed(tmp_path: Path) -> None:
    """What that version did not write down is as it is by default; asked for otherwise, it is another one."""
    settings_path = begin(tmp_path, Settings(steps=7)) / "settings.json"
    settings = json.loads(settings_path.read_text())
    del settings["config"]["pool"], settings["config"]["augment"]["turns"]
    settings_path.write_text(json.dumps(settings))
    begin(tmp_path, Settings(steps=7), resume=True)
    with pytest.raises(ResultsError, match="pool mean, now max"):
        begin(tmp_path, Settings(steps=7, pool="max"), resume=True)


def test_different_settings_are_named(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(ResultsError, match=r"another config.*steps 100, now 50"):
        begin(tmp_path, Settings(steps=50), resume=True)
    with pytest.raises(ResultsError, match="another seed"):
        begin(tmp_path, resume=True, seed=1)


@pytest.mark.parametrize(
    "change", [{"mpp": 0.25}, {"patient": "q"}, {"site": "north"}, {"l0_box": Box(0, 0, 64, 32)}]
)
def test_a_corrected_row_of_the_cohort_is_not_mixed_with_the_old_one(
    change: dict[str, Any], tmp_path: Path
) -> None:
    case = Case("a", "p", "slide", "a.tif", mpp=0.5)

    def begin_with(row: Case) -> None:
        split = TrainingSplit(Cohort((row,)), Cohort(()))
        with begun_training(tmp_path, Settings(), split, also={}, resume=True, fresh=False):
            pass

    begin_with(case)
    begin_with(case)
    with pytest.raises(ResultsError, match="began with another train"):
        begin_with(replace(case, **change))


@pytest.mark.parametrize("fresh", [False, True])
def test_data_set_in_the_training_folder_is_not_touched(tmp_path: Path, fresh: bool) -> None:
    slide = tmp_path / "CAMELYON16" / "training" / "normal" / "normal_001.tif"
    slide.parent.mkdir(parents=True)
    slide.write_bytes(b"a slide")
    with pytest.raises(ResultsError, match=r"normal.*not created by `lobule train`"):
        begin(tmp_path / "CAMELYON16", fresh=fresh)
    assert slide.exists() and not (tmp_path / "CAMELYON16" / "training" / "settings.json").exists()


def test_training_killed_during_deletion_is_still_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(tmp_path)
    (folder / "round-0").mkdir()
    (folder / "z.csv").write_text("step\n")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        begin(tmp_path, fresh=True)
    begin(tmp_path, fresh=True)
    assert sorted(item.name for item in folder.iterdir()) == [".lock", "settings.json"]


def begin_and_fail(
    out: Path, error: Exception, written: tuple[str, ...] = (), *, fresh: bool = False, resume: bool = False
) -> None:
    with begun_training(out, Settings(), NOBODY, also={}, resume=resume, fresh=fresh) as folder:
        for name in written:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")
        raise error


@pytest.mark.parametrize("written", [(), ("features.json",)])
def test_a_refused_training_leaves_nothing_behind(tmp_path: Path, written: tuple[str, ...]) -> None:
    out = tmp_path / "models" / "first"
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="no tissue"):
            begin_and_fail(out, ConfigError("no tissue"), written, fresh=fresh)
        assert list(tmp_path.iterdir()) == []
    assert (begin(out) / "settings.json").exists(), "the next training may begin there"


def test_a_refused_training_leaves_the_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("case\n")
    with pytest.raises(ConfigError):
        begin_and_fail(tmp_path, ConfigError("no tissue"))
    assert [path.name for path in tmp_path.iterdir()] == ["cohort.csv"]


def test_a_training_that_fails_later_can_be_resumed(tmp_path: Path) -> None:
    """Checkpoints are kept whatever ends the training, and so is what another error may leave."""
    with pytest.raises(ConfigError):
        begin_and_fail(tmp_path / "a", ConfigError("no tissue"), ("round-0/step-1/model.safetensors",))
    assert (tmp_path / "a" / "training" / "settings.json").exists()
    with pytest.raises(ModelError):
        begin_and_fail(tmp_path / "b", ModelError("the loss is NaN"))
    assert (tmp_path / "b" / "training" / "settings.json").exists()
    with pytest.raises(ConfigError):
        begin_and_fail(tmp_path / "b", ConfigError("no tissue"), resume=True)
    assert (tmp_path / "b" / "training" / "settings.json").exists(), "a resumed training was there before"


def test_a_training_refused_because_of_a_bundle_leaves_the_bundle_alone(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ResultsError, match="already contains a bundle"):
        begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
