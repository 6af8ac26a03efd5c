"""`lobule train`: train a method on a cohort and write a bundle."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, parse_settings
from lobule.cli.scan import _duration, _sigterm_as_interrupt, as_bytes

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.training.fitting import FitProgress


LINE_EVERY_S = 30.0
"""Seconds between two progress lines if the output goes to a pipe or a file."""


@lobule_command("lobule train scannet cohort.csv --out OUT --set trunk=tiny --set mpp=0.5 --dry-run")
@click.argument("method")
@click.argument("cohort", metavar="COHORT")
@click.option(
    "--out",
    required=True,
    metavar="BUNDLE",
    help="Folder for the bundle and the checkpoints of the training.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the method; repeatable.",
)
@click.option(
    "--val",
    default="val",
    show_default=True,
    metavar="SPLIT",
    help="Split for validation: val, test or none.",
)
@click.option(
    "--recipe", metavar="NAME", help="full or quick, if the method has both; same as --set recipe=NAME."
)
@click.option(
    "--rounds", type=click.IntRange(0), help="Rounds of hard-negative mining; same as --set rounds=N."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Resume an interrupted training in this folder.")
@click.option("--fresh", is_flag=True, help="Delete an existing training in this folder first.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps.")
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True
)
@click.option(
    "--workers", type=click.IntRange(1), help="Workers that sample patches; by default one per core."
)
@click.option(
    "--processes",
    is_flag=True,
    help="Use processes instead of threads as workers, for machines with many cores per GPU.",
)
@click.option(
    "--max-ram",
    default="2GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory to use in addition to the model.",
)
@click.option("--dry-run", is_flag=True, help="Print the cases and all settings, and stop.")
def command(
    method: str, cohort: str, out: str, settings: tuple[str, ...], dry_run: bool, **options: Any
) -> CommandOutput:
    """Train a method on a cohort and write the bundle.

    All cases of a patient are in the same split. After an interruption, the same command with --resume
    continues and produces exactly the same weights as an uninterrupted training. --dry-run shows all
    settings.

    On several GPUs or machines, start it with torchrun --nproc-per-node 4 -m lobule train and the usual
    arguments. Every process must be able to read the slides and the folder of the bundle.
    """
    from lobule.api import train

    setting_values = parse_settings(settings)
    setting_values |= {name: options[name] for name in ("recipe", "rounds") if options[name] is not None}
    val = None if options["val"] == "none" else options["val"]
    if dry_run:
        return plan(method, cohort, out, setting_values, val, options["seed"])
    from lobule.training.distributed import is_first_rank
    from lobule.training.fitting import FitProgress

    machine = {name: options[name] for name in ("device", "precision", "workers", "processes")}
    machine["max_ram"] = as_bytes(options["max_ram"])
    progress, is_first = FitProgress(), is_first_rank()
    with _sigterm_as_interrupt(), _live_progress(progress) if is_first else nullcontext():
        bundle = train(
            method,
            cohort,
            out,
            settings=setting_values,
            machine=machine,
            val=val,
            progress=progress,
            **{name: options[name] for name in ("seed", "resume", "fresh")},
        )
    if not is_first:
        click.get_current_context().exit()
    return CommandOutput(as_data(bundle), as_text(bundle))


def plan(
    method: str, cohort: str, out: str, setting_values: dict[str, Any], val: str | None, seed: int
) -> CommandOutput:
    """Describe a training without starting it: the cases of each split and all settings."""
    from lobule.api import as_cohort, config_of
    from lobule.methods import method_module
    from lobule.training.job import training_split

    module = method_module(method)
    config = config_of(module.Config, setting_values)
    divide = getattr(module, "split_for_training", training_split)
    split = divide(as_cohort(cohort), val, seed, getattr(module, "KINDS", ("slide", "region")))
    subsets = {"train": split.train, "val": split.val}
    data = {
        "method": method,
        "config": config.to_dict(),
        **{name: [case.id for case in subset] for name, subset in subsets.items()},
        "notes": list(split.notes),
    }
    counts = [
        (name, f"{len(subset)} cases of {len(subset.patients())} patients, {_outlined(subset)} outlined")
        for name, subset in subsets.items()
    ]
    lines = [("method", method), *counts, *(("note", note) for note in split.notes), ("bundle", out)]
    all_settings = [(f"  {name}", str(value)) for name, value in config.to_dict().items()]
    return CommandOutput(data, format_fields([*lines, *all_settings]))


def _outlined(cohort: Any) -> int:
    return sum(case.annotation is not None for case in cohort)


def as_data(bundle: Bundle) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path),
        "method": bundle.method,
        "fingerprint": bundle.fingerprint,
        "metrics": dict(bundle.metrics),
        "notes": list(bundle.provenance.get("notes", ())),
        "lost": dict(bundle.provenance.get("lost", {})),
    }


def as_text(bundle: Bundle) -> str:
    lines = [("bundle", str(bundle.path))]
    lines += [
        (name.replace("_", " "), f"{value:.4f}")
        for name, value in bundle.metrics.items()
        if isinstance(value, float)
    ]
    lines += [("note", note) for note in bundle.provenance.get("notes", ())]
    lines += [(f"lost {case}", cause) for case, cause in bundle.provenance.get("lost", {}).items()]
    lines.append(("next step", f"lobule scan {bundle.path} slide.tif --out results"))
    return format_fields(lines)


@contextmanager
def _live_progress(progress: FitProgress) -> Iterator[None]:
    """Show a live progress line on a terminal; in a pipe, print a line per stage and every half minute."""
    if not sys.stderr.isatty():
        with _printed_progress(progress):
            yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
        stop = threading.Event()

        def draw() -> None:
            while not stop.wait(0.25):
                live.update(Text(line_of(progress)))

        thread = threading.Thread(target=draw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def _printed_progress(progress: FitProgress, every_s: float = LINE_EVERY_S) -> Iterator[None]:
    """Print a line for every stage, a line every `every_s` seconds, and the training's log messages."""
    printer, stop = LinePrinter(sys.stderr), threading.Event()

    def print_periodically() -> None:
        while not stop.wait(every_s):
            printer.write(line_of(progress))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("lobule.train")
    level = log.level
    thread = threading.Thread(target=print_periodically, daemon=True)
    progress.on_stage = lambda changed: printer.write(changed.stage)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        progress.on_stage = None
        log.removeHandler(handler)
        log.setLevel(level)


class LinePrinter:
    """Print whole lines and flush them at once; repeated lines are printed once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last, self._lock = stream, "", threading.Lock()

    def write(self, line: str) -> None:
        with self._lock:
            if line and line != self._last:
                self._last = line
                self._stream.write(line + "\n")
                self._stream.flush()


def line_of(progress: FitProgress) -> str:
    """Format the progress line."""
    segments = [progress.stage]
    if progress.steps and not progress.stage.startswith("mining"):
        segments.append(f"step {progress.step}/{progress.steps}")
        if progress.loss == progress.loss:
            segments.append(f"loss {progress.loss:.3f}")
        if progress.score is not None:
            segments.append(f"validation {progress.score:.4f}")
        if progress.steps_per_s > 0:
            seconds_left = (progress.steps - progress.step) / progress.steps_per_s
            segments.append(
                f"{progress.steps_per_s:.2g} steps/s, about {_duration(seconds_left)} left in this stage"
            )
    return "  ".join(segment for segment in segments if segment)
