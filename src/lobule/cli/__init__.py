"""The command line: `main` and the table of commands."""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("lobule.cli.demo:command", "Train and evaluate on generated slides or exams; write one page."),
    "doctor": ("lobule.cli.doctor:command", "Check this machine and its libraries, or check files."),
    "info": ("lobule.cli.info:command", "Describe a slide, a results folder or a training."),
    "tissue": ("lobule.cli.tissue:command", "Detect the tissue of a slide: area, mask and preview."),
    "phantom": ("lobule.cli.phantom:command", "Generate cohorts of any size with exact ground truth."),
    "cohort": ("lobule.cli.cohort:command", "Write a manifest for a folder of slides, images or exams."),
    "check": (
        "lobule.cli.check:command",
        "Check the splits of a cohort: leaks, duplicates and confounding.",
    ),
    "methods": ("lobule.cli.methods:command", "List the methods, or explain the settings of one."),
    "features": ("lobule.cli.features:command", "Compute tile features of slides, for TRIDENT or CLAM."),
    "train": ("lobule.cli.train:command", "Train a method on a cohort; resumable."),
    "compare": ("lobule.cli.compare:command", "Compare methods and encoders on one cohort, in one table."),
    "budget": ("lobule.cli.budget:command", "Compare models trained on different numbers of slides."),
    "scan": ("lobule.cli.scan:command", "Scan cases with a model: maps, findings and scores; resumable."),
    "heatmaps": (
        "lobule.cli.heatmaps:command",
        "Write the heatmaps of exams in the layout of NYU's tools.",
    ),
    "patches": (
        "lobule.cli.patches:command",
        "Evaluate reverse distillation on listed patches, or on WSSS4LUAD.",
    ),
    "wsss4luad": (
        "lobule.cli.wsss4luad:command",
        "Write the training cohort of WSSS4LUAD for reverse distillation.",
    ),
    "evaluate": ("lobule.cli.evaluate:command", "Evaluate results: FROC, AUC, PR, calibration, intervals."),
    "view": ("lobule.cli.view:command", "Show results, slides and exams in a web browser."),
    "export": ("lobule.cli.export:command", "Write results in the formats of other software."),
    "report": ("lobule.cli.report:command", "Write one page per case and one per cohort: HTML and PDF."),
    "import": (
        "lobule.cli.import_annotations:command",
        "Read annotations of other software for the cases of a cohort.",
    ),
    "weights": ("lobule.cli.weights:command", "List, inspect, convert, calibrate and quantise weights."),
}
"""The location of each click command and its line of help; a command is imported when it is called."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status: 0 done, 1 some cases failed, 2 invalid use."""
    import sys

    _open_closed_streams()
    try:
        from lobule.allocator import keep_freed_memory

        keep_freed_memory()  # before any library starts threads, which would get separate arenas
        from lobule.cli.base import LazyGroup, run

        sys.exit(run(LazyGroup("lobule", COMMANDS, help=ABOUT, version=True), arguments))
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)


def _open_closed_streams() -> None:
    """Replace each closed standard stream, as after `2>&-`, by the null device.

    Otherwise the next opened file would get the number of the stream, and native libraries would write
    their messages into that file.
    """
    import os
    import sys

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which the stream had
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


ABOUT = """Find breast cancer in tissue slides and mammograms, from whatever labels you have.

Research use only: not a medical device, not for diagnosis.
"""
