"""The command line in general: imports, error messages and exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lobule.cli import COMMANDS
from lobule.cli.base import CommandOutput, LazyGroup, format_fields, lobule_command, run, table
from lobule.errors import ConfigError, DamagedFile, MissingMpp
from tests.cli.conftest import Lobule


def shell(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lobule", *arguments], capture_output=True, text=True, **settings
    )  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "bundle", "nowhere.tif", "--out", "r"], "nowhere.tif"),
        (["scan", "nowhere", "slide.csv", "--out", "r"], "slide.csv"),
        (["scan", "nowhere", "slide.tif", "--out", "r", "--max-ram", "much"], "--max-ram 'much'"),
        (["scan", "nowhere", "slide.tif", "--out", "r", "--slide-mpp", "-1"], "--slide-mpp -1"),
        (["scan", "nowhere", "slide.tif", "--out", "r", "--set", "=3"], "cannot parse the setting"),
        (["scan", "nowhere", "slide.tif", "--out", "r", "--stride", "0"], "--stride"),
        (["weights", "quantize", "nowhere", "slide.tif", "--out", "r"], "nowhere: not a bundle"),
        (
            ["weights", "quantize", "nowhere", "slide.tif", "--out", "bundle"],
            "bundle: the folder contains a bundle already. Pass --fresh to replace it",
        ),
        (["features", "nowhere.csv", "--out", "r"], "nowhere.csv"),
        (["train", "scannet", "nowhere.csv", "--out", "r"], "nowhere.csv"),
    ],
)
def test_a_missing_path_or_a_wrong_option_is_reported_before_torch_is_imported(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "slide.tif").touch()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.json").touch()
    code = (
        "import sys\nfrom lobule.cli import COMMANDS\nfrom lobule.cli.base import LazyGroup, run\n"
        f"status = run(LazyGroup('lobule', COMMANDS, help=''), {arguments!r})\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2), done.stderr
    assert message in done.stderr


def test_help_loads_neither_torch_nor_numpy_nor_any_command() -> None:
    code = (
        "import sys\nfrom lobule.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "wrong = {name for name in sys.modules if name.startswith('lobule.cli.')} - {'lobule.cli.base'}\n"
        "wrong |= {'torch', 'numpy', 'rich', 'PIL'}\n"
        "assert not wrong & set(sys.modules), wrong & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert line[:20] in done.stdout


def test_version(lobule: Lobule) -> None:
    from lobule import __version__

    assert lobule("--version").out.strip() == f"lobule {__version__}"


def test_missing_command_shows_help_with_status_2(lobule: Lobule) -> None:
    done = lobule()
    assert done.status == 2
    assert "Commands:" in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inof"], "Did you mean 'info'?"),
        (["xyzzy"], "Commands: demo"),
        (["info"], "Missing argument"),
        (["info", "--no-such"], "No such option"),
        (["phantom", "slide"], "Did you mean 'slides'?"),
        (["phantom", "slides", "OUT", "--size", "big"], "not a size"),
        (["import", "a.csv", "--from", "x", "--out", "y", "--group", "Carcinoma"], "states no kind"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(lobule: Lobule, arguments: list[str], words: str) -> None:
    done = lobule(*arguments)
    assert done.status == 2
    assert words in done.err
    assert "--help" in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


def probe(error: BaseException | None, failed: int = 0) -> LazyGroup:
    """Return a command line with one command, which raises the error or reports failed cases."""

    @lobule_command("lobule probe")
    @click.option("--two-words", default="")
    def command(two_words: str) -> CommandOutput:
        if error is not None:
            raise error
        return CommandOutput({"two": two_words, "µm": 0.5}, "text", failed)

    group = LazyGroup("lobule", {"probe-it": ("x:y", "A probe.")}, help="")
    group.get_command = lambda ctx, name: command if name.replace("_", "-") == "probe-it" else None  # type: ignore[method-assign, assignment]
    return group


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MissingMpp("a.tif"), 2, "a.tif: the file does not say its µm/px. Give it with --slide-mpp"),
        (DamagedFile("the file is cut short", subject="a.tif"), 1, "a.tif: the file is cut short."),
        (ZeroDivisionError("x"), 1, "This is a bug in Lobule; --debug shows where."),
        (PermissionError(13, "Permission denied", "/root/x"), 1, "/root/x: Permission denied."),
        (MemoryError(), 1, "Out of memory"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_errors_are_one_line_without_a_traceback(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, words: str
) -> None:
    assert run(probe(error), ["probe-it"]) == status
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.strip().count("\n") == 0
    assert "Traceback" not in captured.err
    assert "\x1b" not in captured.err  # colours are used only on terminals


def test_errors_are_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(probe(MissingMpp("a.tif")), ["probe-it", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["subject"]) == ("MissingMpp", "a.tif")
    assert "--slide-mpp" in error["remedy"]
    refused = ConfigError("no precision 'half'", expected="auto or float32", actual="half")
    assert run(probe(refused), ["probe-it", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["what"], error["expected"], error["found"]) == (
        "no precision 'half'",
        "auto or float32",
        "half",
    )


def test_debug_lets_the_traceback_through() -> None:
    with pytest.raises(DamagedFile):
        run(probe(DamagedFile("x")), ["probe-it", "--debug"])


def test_failed_cases_are_status_1_and_hyphens_are_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(probe(None, failed=3), ["probe_it"]) == 1
    assert capsys.readouterr().out == "text\n"
    assert run(probe(None), ["probe-it", "--two_words", "a b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"two": "a b", "µm": 0.5}


def test_control_c_is_one_line_and_status_130(workspace: Path) -> None:
    code = (
        "import time, lobule.cli.info as info\n"
        "info.Path.is_file = lambda self: print('reading', flush=True) or time.sleep(60)\n"
        "from lobule.cli import main\nmain(['info', 'slide.tif'])\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=workspace, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline() == "reading\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err.strip(), out) == (130, "Interrupted.", "")


def test_closed_output_pipe_is_not_an_error(workspace: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "lobule", "weights", "list"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.stderr == ""


def test_columns_align() -> None:
    assert format_fields([("a", "1"), ("bcd", "2\n3")]) == "a    1\nbcd  2\n     3"
    lines = table(("name", "count"), [("x", "9"), ("yy", "10")]).splitlines()
    assert lines[1:] == ["x         9", "yy       10"]
