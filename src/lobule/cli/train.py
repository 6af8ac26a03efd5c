"""`lobule train`: train a method on a cohort and write a bundle."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.running import duration, live_line, repeated, sigterm_as_interrupt

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.training.fitting import FitProgress


LINE_EVERY_S = 30.0
"""Seconds between two progress lines if the output goes to a pipe or a file."""


@lobule_command("lobule train scannet cohort.csv --out OUT --set trunk=tiny --set weights=random --dry-run")
@click.argument("method")
@click.argument("cohort", metavar="COHORT")
@shared.out_option(
    "BUNDLE", "Folder for the bundle and its checkpoints; an interrupted training resumes there."
)
@shared.settings_option
@click.option(
    "--coords",
    multiple=True,
    metavar="FILE",
    help="reverse_distillation: lists of training patches, normal then tumour; the same as --set coords=A,B.",
)
@shared.tissue_method_option
@shared.val_option
@shared.seed_option
@shared.fresh_option("an existing training")
@shared.device_option
@shared.precision_option
@shared.workers_option
@click.option(
    "--processes",
    is_flag=True,
    help="Use processes instead of threads as workers, for machines with many cores per GPU.",
)
@shared.max_ram_option
@shared.dry_run_option
def command(
    method: str,
    cohort: str,
    out: str,
    settings: dict[str, str],
    coords: tuple[str, ...],
    dry_run: bool,
    **options: Any,
) -> CommandOutput:
    """Train a method on a cohort and write the bundle.

    All cases of a patient are in the same split. After an interruption, the same command continues and
    produces exactly the same weights as an uninterrupted training. --dry-run shows the cases and what every
    setting resolves to; `lobule methods METHOD` explains the settings.

    On several GPUs or machines, start it with torchrun --nproc-per-node 4 -m lobule train and the usual
    arguments. Every process must be able to read the slides and the folder of the bundle.
    """
    tissue = shared.tissue_of(options)
    options["tissue"] = None if tissue is True else tissue
    if coords:
        settings = {**settings, "coords": ",".join(coords)}
    from lobule.methods import find_method

    chosen = find_method(method)
    chosen.trainer()
    # An invalid setting is reported before torch is imported, which takes seconds.
    chosen.configured(settings)
    if dry_run:
        return plan(method, cohort, out, settings, options["val"], options["seed"])
    from lobule.api import train
    from lobule.cohort import as_cohort

    cases = as_cohort(cohort)  # also before torch is imported
    from lobule.training.distributed import is_first_rank
    from lobule.training.fitting import FitProgress

    progress, is_first = FitProgress(), is_first_rank()
    with sigterm_as_interrupt(), _shown_progress(progress) if is_first else nullcontext():
        bundle = train(method, cases, out, settings=settings, progress=progress, **options)
    if not is_first:
        click.get_current_context().exit()
    return CommandOutput(as_data(bundle), as_text(bundle))


def plan(
    method: str, cohort: str, out: str, settings: dict[str, str], val: str | None, seed: int
) -> CommandOutput:
    """Describe a training without starting it: the cases of each split and what every setting resolves to."""
    from lobule.cohort import as_cohort
    from lobule.methods import find_method
    from lobule.settings import flattened

    chosen = find_method(method)
    chosen.trainer()
    config = chosen.configured(settings)
    split = chosen.divided(as_cohort(cohort), val, seed)
    if chosen.resolve is not None:
        config = chosen.resolve(config, split.train)
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
    all_settings = [(f"  {name}", str(value)) for name, value in flattened(config.to_dict()).items()]
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
    numbers = {name: value for name, value in bundle.metrics.items() if isinstance(value, float)}
    lines += [(name.replace("_", " "), f"{value:.4f}") for name, value in numbers.items()]
    lines += [("note", note) for note in bundle.provenance.get("notes", ())]
    lines += [(f"lost {case}", cause) for case, cause in bundle.provenance.get("lost", {}).items()]
    lines.append(("next step", f"lobule scan {bundle.path} slide.tif --out results"))
    return format_fields(lines)


def _shown_progress(progress: FitProgress) -> AbstractContextManager[None]:
    """Show a live progress line on a terminal; in a pipe, print a line per stage and every half minute."""
    return live_line(lambda: line_of(progress)) if sys.stderr.isatty() else _printed_progress(progress)


@contextmanager
def _printed_progress(progress: FitProgress, every_s: float = LINE_EVERY_S) -> Iterator[None]:
    """Print a line for every stage, a line every `every_s` seconds, and the training's log messages."""
    printer = LinePrinter(sys.stderr)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("lobule.train")
    level = log.level
    progress.on_stage = lambda changed: printer.write(changed.stage)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with repeated(lambda: printer.write(line_of(progress)), every_s):
            yield
    finally:
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
            time_left = f"about {duration(seconds_left)} left in this stage"
            segments.append(f"{progress.steps_per_s:.2g} steps/s, {time_left}")
    return "  ".join(segment for segment in segments if segment)
