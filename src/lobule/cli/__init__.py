"""The command line: `main`, and the dictionary of commands. Each command parses, calls and prints."""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("lobule.cli.demo:command", "Generated slides: train on some, scan another, look at it."),
    "doctor": ("lobule.cli.doctor:command", "What this machine can do; what is wrong with these files."),
    "info": ("lobule.cli.info:command", "Format, size, levels, µm/px, associated images and tissue area."),
    "tissue": ("lobule.cli.tissue:command", "Tissue map, area and preview of a slide."),
    "phantom": ("lobule.cli.phantom:command", "Generated cohorts with exact truth, of any size."),
    "cohort": ("lobule.cli.cohort:command", "A manifest from a folder as the public data sets lay it out."),
    "features": ("lobule.cli.features:command", "Tile features of slides, as TRIDENT and CLAM lay them out."),
    "train": (
        "lobule.cli.train:command",
        "Train a method on a cohort; goes on where it was stopped.",
    ),
    "budget": ("lobule.cli.budget:command", "How few outlined slides are enough: a curve over budgets."),
    "scan": (
        "lobule.cli.scan:command",
        "Score every case and say where: maps, findings, a score; resumable.",
    ),
    "evaluate": (
        "lobule.cli.evaluate:command",
        "FROC, AUC, precision and recall, calibration, with intervals, by site or any column.",
    ),
    "weights": (
        "lobule.cli.weights:command",
        "Pretrained and published weights: where they are, what a file is.",
    ),
}
"""Name: (where its click command is, one line of help), in the order of the help; loaded when called."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its status: 0 done, 1 some cases failed, 2 wrong use."""
    import sys

    _open_closed_streams()
    try:
        from lobule.allocator import keep_freed_memory

        keep_freed_memory()  # before any library has threads, each with an arena of its own
        from lobule.cli.base import LazyGroup, run

        sys.exit(run(LazyGroup("lobule", COMMANDS, help=ABOUT, version=True), arguments))
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)


def _open_closed_streams() -> None:
    """Open the null device in place of a standard stream that is closed, as after `2>&-`.

    The work goes on and its messages are lost. Otherwise the next file to be opened would get the number of
    the stream, and messages of native libraries would be written into that file.
    """
    import os
    import sys

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is that of the stream
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


ABOUT = """Find breast cancer in tissue slides and mammograms, from whatever labels you have.

Research use only: not a medical device, not for diagnosis.
"""
