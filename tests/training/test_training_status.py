"""The status of a training, read from its files while it runs and after it ended."""

from __future__ import annotations

from pathlib import Path

from lobule.files import write_json
from lobule.results.locks import lock_folder
from lobule.training.training_status import training_folder, training_status


def test_a_training_runs_while_its_folder_is_locked_and_until_the_bundle_exists(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    stage = folder / "round-0"
    stage.mkdir(parents=True)
    write_json(folder / "settings.json", {"method": "scannet", "config": {"steps": 20}, "train": {"a": []}})
    (stage / "log.csv").write_text("step,loss,rate,score\n10,0.5,0.01,\n20,0.25,0.01,0.75\n")
    assert training_folder(tmp_path) == folder == training_folder(folder)
    assert not training_status(folder).is_running
    with lock_folder(folder):
        status = training_status(folder)
        assert status.is_running and not status.is_finished
    (last,) = status.stages
    assert (last.name, last.step, last.loss, last.score) == ("round-0", 20, 0.25, 0.75)
    assert (status.method, status.train_cases, status.val_cases) == ("scannet", 1, 0)
    write_json(tmp_path / "model.json", {})
    with lock_folder(folder):
        status = training_status(folder)
        assert status.is_finished and not status.is_running
