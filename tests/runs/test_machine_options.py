"""Every script in runs/ passes its machine options to the commands, and passes only options that exist.

A stand-in for Python writes down the arguments of each command and computes nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import click
import pytest

from lobule.cli import COMMANDS

RUNS = Path(__file__).parents[2] / "runs"
STAND_IN = """#!/usr/bin/env bash
if [ "$1" = - ]; then cat >/dev/null; exit 0; fi
printf '%q ' "$@" >>"$LOG"; printf '\\n' >>"$LOG"
"""
DATA = {
    "bach_rakhlin": {"BACH": "data"},
    "camelyon16_chowder": {"CAMELYON16": "data"},
    "camelyon16_fwrd": {"CAMELYON16": "data"},
    "camelyon16_scannet": {"CAMELYON16": "data"},
    "nyu": {"WEIGHTS": "data", "EXAMS": "data/exams.csv"},
}
"""Each script with the variables that name its data."""
MACHINE = {"MAX_RAM": "3GiB", "WORKERS": "2", "PRECISION": "float32", "PROCESSES": "1", "DEVICE": "cpu"}


def commands_of(script: str, folder: Path, variables: dict[str, str]) -> list[list[str]]:
    """The arguments of every `lobule` command that a script runs."""
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (folder / "data" / "sub").mkdir(parents=True)
    (folder / "data" / "exams.csv").write_text("case,patient,l_cc\n")
    (folder / "data" / "sub" / "sample_image_model.p").touch()
    (folder / "out").mkdir()
    (folder / "out" / "test.csv").touch()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": str(python),
        "LOG": str(folder / "log"),
        "OUT": "out",
    }
    subprocess.run(
        ["bash", str(RUNS / f"{script}.sh")],
        cwd=folder,
        env={**environment, **DATA[script], **variables},
        capture_output=True,
        check=True,
    )
    lines = [shlex.split(line) for line in (folder / "log").read_text().splitlines()]
    return [words[words.index("lobule") + 1 :] for words in lines if "lobule" in words]


def options_of(arguments: list[str]) -> set[str]:
    """The names of all options that a command of Lobule knows."""
    target, _, attribute = COMMANDS[arguments[0]][0].partition(":")
    command = getattr(import_module(target), attribute or "command")
    if isinstance(command, click.Group):
        subcommand = command.get_command(click.Context(command), arguments[1])
        assert subcommand is not None
        command = subcommand
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("script", DATA)
def test_machine_options_reach_the_commands(script: str, tmp_path: Path) -> None:
    commands = commands_of(script, tmp_path, MACHINE)
    names = {arguments[0] for arguments in commands}
    assert "scan" in names
    for arguments in commands:
        text = " ".join(arguments)
        if arguments[0] in ("train", "features", "scan"):
            assert "--max-ram 3GiB" in text and "--precision float32" in text and "--device cpu" in text
        assert ("--workers 2" in text) == (arguments[0] == "train")
        assert ("--processes" in arguments) == (arguments[0] == "train")


@pytest.mark.parametrize("script", DATA)
def test_unset_machine_options_are_left_to_the_command(script: str, tmp_path: Path) -> None:
    text = " ".join(" ".join(arguments) for arguments in commands_of(script, tmp_path, {}))
    for option in ("--max-ram", "--workers", "--processes"):
        assert option not in text


@pytest.mark.parametrize("script", DATA)
def test_scripts_pass_only_options_that_exist(script: str, tmp_path: Path) -> None:
    for arguments in commands_of(script, tmp_path, MACHINE):
        used = {word for word in arguments if word.startswith("--")}
        assert used <= options_of(arguments), arguments


def test_every_script_is_tested() -> None:
    assert {path.stem for path in RUNS.glob("*.sh")} - {"lib"} == set(DATA)
