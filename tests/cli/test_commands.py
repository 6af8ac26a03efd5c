"""Every command: its examples run, `--json` prints JSON, and each bad file gives a one-line error."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import Command, LazyGroup
from lobule.methods import METHODS
from lobule.scanning.openvino_library import is_installed
from tests.cli.conftest import Lobule

SMALLER = {
    "lobule weights quantize": ["--fields", "8", "--scans", "0", "--max-ram", "16MiB"],
}
"""Options that make an example faster than its default."""


def commands(group: LazyGroup | None = None, path: str = "lobule") -> Iterator[tuple[str, Command]]:
    group = group or LazyGroup("lobule", COMMANDS, help=ABOUT)
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, LazyGroup):
            yield from commands(command, f"{path} {name}")
        else:
            assert isinstance(command, Command), name
            yield f"{path} {name}", command


EXAMPLES = [
    (path, example)
    for path, command in commands()
    for example in command.examples
    if path not in ("lobule demo", "lobule demo exams", "lobule view") and "dicom-web" not in example
]
"""The examples that end by themselves, need no server and have no test of their own that runs all of them.

The demos are run by test_demo.py and test_demo_exams.py. The viewer serves until it is interrupted;
tests/server runs it. DICOMweb servers are in tests/dicomweb.
"""


def test_every_command_has_an_example_of_itself() -> None:
    for path, command in commands():
        assert command.examples, f"{path} has no example"
        assert all(example.startswith(path) for example in command.examples)


@pytest.mark.parametrize("example", [example for _, example in EXAMPLES])
def test_examples_run(lobule: Lobule, example: str, workspace: Path) -> None:
    path = next(path for path, documented in EXAMPLES if documented == example)
    arguments = [*shlex.split(example)[1:], *SMALLER.get(path, [])]
    if "BUNDLE" in arguments and not (workspace / "BUNDLE").exists():
        pytest.skip("the workspace contains no bundle")
    if path == "lobule weights quantize" and not is_installed("nncf"):
        pytest.skip("the extra 'quantize' is not installed")
    if "OUT" in arguments:
        arguments[arguments.index("OUT")] = f"OUT-{path.rpartition(' ')[2]}"
    done = lobule(*arguments, "--json")
    assert done.status == 0, done.err
    assert done.err == ""
    assert isinstance(json.loads(done.out), dict)


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_help_ends_with_the_example(lobule: Lobule, path: str) -> None:
    done = lobule(*path.split()[1:], "--help")
    assert done.status == 0
    assert done.out.rstrip().splitlines()[-1].strip().startswith(path)


READS_A_FILE = ["info", "tissue", "doctor", "weights inspect"]


@pytest.fixture
def bad(workspace: Path) -> dict[str, str]:
    folder = workspace / "bad"
    folder.mkdir(exist_ok=True)
    (folder / "noise.svs").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "empty.tif").write_bytes(b"")
    slide_bytes = (workspace / "slide.tif").read_bytes()
    (folder / "cut.tif").write_bytes(slide_bytes[:2000])
    return {
        "missing": "nowhere.svs",
        "folder": "photos",
        "noise": "bad/noise.svs",
        "empty": "bad/empty.tif",
        "cut": "bad/cut.tif",
    }


@pytest.mark.parametrize("kind", ["missing", "folder", "noise", "empty", "cut"])
@pytest.mark.parametrize("command", READS_A_FILE)
def test_bad_file_gives_a_short_message_without_a_traceback(
    lobule: Lobule, bad: dict[str, str], command: str, kind: str
) -> None:
    done = lobule(*command.split(), bad[kind])
    assert done.status in (1, 2)
    assert "Traceback" not in done.err + done.out
    assert "bug" not in done.err, done.err
    output = done.out if command == "doctor" else done.err
    assert Path(bad[kind]).name in output
    if command != "doctor":
        assert done.err.strip().count("\n") == 0
        assert done.out == ""


# -- info ---------------------------------------------------------------------------------------------------


def test_info_reports_size_and_resolution(lobule: Lobule) -> None:
    data = json.loads(lobule("info", "slide.tif", "--json").out)
    assert (data["width"], data["height"]) == (2048, 1536)
    assert data["mpp_x"] == pytest.approx(0.5, rel=1e-3)
    assert "Resolution" in data["mpp_source"]
    assert [level["downsample"] for level in data["levels"]][:2] == [1, 2]
    text = lobule("info", "slide.tif").out
    assert "2,048 × 1,536 px" in text
    assert "mm²" in text


def test_info_accepts_mpp_where_the_file_has_none(lobule: Lobule) -> None:
    text = lobule("info", "photos/benign/1.png").out
    assert "unknown" in text
    assert "--slide-mpp" in text
    data = json.loads(lobule("info", "photos/benign/1.png", "--slide-mpp", "0.25", "--json").out)
    assert (data["mpp_x"], data["mpp_source"]) == (0.25, "given by the user")


def test_info_writes_a_thumbnail(lobule: Lobule, workspace: Path) -> None:
    assert lobule("info", "slide.tif", "--thumbnail", "thumb.png", "--size", "200").status == 0
    with Image.open(workspace / "thumb.png") as picture:
        assert picture.size == (200, 150)
    done = lobule("info", "slide.tif", "--thumbnail", "label.png", "--image", "label")
    assert done.status == 2
    assert "no associated image 'label'" in done.err


# -- cohort and phantom -------------------------------------------------------------------------------------


def test_phantom_writes_a_readable_cohort(lobule: Lobule, workspace: Path) -> None:
    from lobule.cohort import read_cohort

    done = lobule(
        "phantom", "slides", "small", "--count", "2", "--size", "1024x768", "--normal", "1", "--json"
    )
    assert done.status == 0, done.err
    cohort = read_cohort(workspace / "small" / "cohort.csv")
    assert json.loads(done.out)["cases"] == len(cohort) == 2
    again = lobule("phantom", "slides", "small", "--count", "2", "--size", "1024x768")
    assert again.status == 2
    assert "--force" in again.err


def test_cohort_command_summarises_the_manifest(lobule: Lobule) -> None:
    data = json.loads(
        lobule("cohort", "CAMELYON16", "--from", "camelyon16", "--out", "sum.csv", "--json").out
    )
    assert data["splits"] == {"train": 2, "test": 1}
    assert data["labels"] == {"normal": 1, "tumor": 1}
    assert set(data["notes"]) == {"tumor_015", "test_114"}
    assert lobule("cohort", "CAMELYON16", "--from", "camelyon16", "--out", "sum.csv").status == 2
    assert "2 (image) of 2 patients" in lobule("cohort", "photos", "--from", "folder", "--out", "p.csv").out
    missing = lobule("cohort", "nowhere", "--from", "folder", "--out", "q.csv")
    assert missing.status == 1
    assert "no such folder" in missing.err


# -- methods ------------------------------------------------------------------------------------------------


def test_methods_lists_methods_and_presets(lobule: Lobule) -> None:
    methods = {method["name"]: method for method in json.loads(lobule("methods", "--json").out)["methods"]}
    assert set(methods) == set(METHODS)
    assert methods["weldon"]["preset"] == {"model": "weldon"}
    assert not methods["gmic"]["is_trained"]
    assert "Preset: model=weldon" in lobule("methods").out


def test_methods_explains_every_setting_of_a_method(lobule: Lobule) -> None:
    data = json.loads(lobule("methods", "reverse-distillation", "--json").out)
    settings = {setting["name"]: setting for setting in data["settings"]}
    assert settings["stride"] == {
        "name": "stride",
        "type": "whole number",
        "default": 64,
        "required": False,
        "meaning": "Pixels per map cell, unless a scan sets another stride.",
        "scan": False,
    }
    assert settings["form"]["scan"] and settings["augment.hue"]["default"] == 0.02
    text = lobule("methods", "weldon").out
    assert "weldon (chowder | modern | weldon" in text
    assert "Number of highest and of lowest tile scores that are used." in text
    wrong = lobule("methods", "scanet")
    assert wrong.status == 2
    assert "Did you mean 'scannet'" in wrong.err


# -- features -----------------------------------------------------------------------------------------------


def test_features_resume_and_start_over_with_fresh(lobule: Lobule, workspace: Path) -> None:
    arguments = ["features", "slide.tif", "--backbone", "lobule:tiny", "--weights", "random", "--out", "F"]
    arguments += ["--mpp", "2", "--device", "cpu"]
    first = lobule(*arguments)
    assert first.status == 0, first.err
    (file,) = [path for path in (workspace / "F").rglob("*.h5") if "features_" in path.parent.name]
    inode = file.stat().st_ino
    assert lobule(*arguments).status == 0
    assert file.stat().st_ino == inode
    other = [*arguments, "--dtype", "float32"]
    refused = lobule(*other)
    assert refused.status == 1
    assert "another dtype" in refused.err
    (workspace / "F" / "mine.txt").write_text("not written by Lobule")
    assert lobule(*other, "--fresh").status == 0
    assert json.loads((workspace / "F" / "features.json").read_text())["dtype"] == "float32"
    assert (workspace / "F" / "mine.txt").exists()
    (workspace / "elsewhere").mkdir()
    (workspace / "elsewhere" / "h5_files").mkdir()
    (workspace / "elsewhere" / "h5_files" / "a.h5").touch()
    arguments[arguments.index("F")] = "elsewhere"
    lobule(*arguments, "--fresh")
    assert (workspace / "elsewhere" / "h5_files" / "a.h5").exists()


# -- scan and train: dry runs -------------------------------------------------------------------------------


def test_failed_cases_set_the_exit_status_unless_they_are_allowed(lobule: Lobule, workspace: Path) -> None:
    (workspace / "damaged.tif").write_bytes(b"II*\0 and no image")
    scan = ["scan", "BUNDLE", "damaged.tif", "--out", "FAILED", "--device", "cpu", "--precision", "float32"]
    first, allowed = lobule(*scan, "--runtime", "torch"), lobule(*scan, "--allow-failed")
    assert (first.status, allowed.status) == (1, 0)
    assert "1 failed" in first.out and "1 failed" in allowed.out


def test_a_dry_run_of_a_scan_shows_what_its_settings_resolve_to(lobule: Lobule) -> None:
    scan = ["scan", "BUNDLE", "slide.tif", "--out", "R", "--dry-run"]
    data = json.loads(lobule(*scan, "--json", "--set", "threshold=0.7").out)
    assert data["settings"]["threshold"] == 0.7
    assert data["settings"]["findings"] == "components"
    assert data["settings"]["stride"] > 0
    assert json.loads(lobule(*scan, "--json", "--stride", "4").out)["settings"]["stride"] == 4
    for wrong, message in (
        (["--set", "trunk=x"], "'trunk' cannot be set"),
        (["--set", "threshold=x"], "not a number"),
    ):
        refused = lobule(*scan, *wrong)
        assert refused.status == 2 and message in refused.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rakhlin", "labelled.csv", "--set", "recipe=quick"], {"augmentations": 4, "crops": 5}),
        (["reverse-distillation", "cohort.csv"], {"rate": 1e-6, "batch": 32, "epochs": 10}),
        (["weldon", "cohort.csv", "--set", "features=F"], {"model": "weldon", "r": 10, "epochs": 50}),
    ],
)
def test_a_dry_run_of_a_training_shows_what_its_settings_resolve_to(
    lobule: Lobule, workspace: Path, arguments: list[str], expected: dict[str, object]
) -> None:
    rows = "a,p,photos/benign/1.png,benign\nb,q,photos/malignant/1.png,invasive\n"
    (workspace / "labelled.csv").write_text("case,patient,image,label\n" + rows)
    done = lobule("train", *arguments, "--out", "T", "--dry-run", "--json")
    assert done.status == 0, done.err
    config = json.loads(done.out)["config"]
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("method", "message"),
    [("classifier", "not trained by Lobule"), ("gmic", "not trained by Lobule"), ("chowder", "none are set")],
)
def test_a_dry_run_of_a_training_that_cannot_start_is_refused(
    lobule: Lobule, method: str, message: str
) -> None:
    done = lobule("train", method, "cohort.csv", "--out", "T", "--dry-run")
    assert done.status == 2
    assert message in done.err


def test_the_tissue_method_of_the_papers_can_be_chosen(lobule: Lobule, workspace: Path) -> None:
    """A scan and an extraction record the method; the default detects tissue by stain."""
    arguments = ["features", "slide.tif", "--backbone", "lobule:tiny", "--weights", "random", "--mpp", "1"]
    for method, option in (("camelyon", ["--tissue-method", "camelyon"]), ("stain", [])):
        lobule(*arguments, "--out", method, "--device", "cpu", *option)
        stored = json.loads((workspace / method / "scan" / "scan.json").read_text())
        assert f'"method": "{method}"' in json.dumps(stored)
