"""`lobule features`: compute tile features of a cohort with one encoder or several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.running import live_line, report_data, report_lines, sigterm_as_interrupt
from lobule.cli.scan import line_of

if TYPE_CHECKING:
    from lobule.cohort import Cohort
    from lobule.scanning.scan import ScanReport


@lobule_command(
    "lobule features cohort.csv --encoder lobule:tiny --weights random --mpp 2 --out OUT",
    "lobule features cohort.csv --encoder efficientnet-lite0 --encoder resnet50 --out OUT --dry-run",
)
@click.argument("cases", nargs=-1, required=True, metavar="COHORT|SLIDE...")
@click.option(
    "--encoder",
    "--backbone",
    "encoder",
    multiple=True,
    default=("resnet50",),
    metavar="NAME",
    help="An encoder of `lobule weights list`, a torchvision model, timm:NAME (or timm:hf-hub:OWNER/MODEL), "
    "or lobule:NAME. If it is repeated, the encoders share one pass over the slides.",
)
@click.option(
    "--weights",
    multiple=True,
    default=("pretrained",),
    metavar="FILE",
    help="A safetensors or torch file that contains only weights, `pretrained` (downloaded), or `random`. "
    "With several encoders, one for all of them or one for each.",
)
@click.option(
    "--unverified",
    is_flag=True,
    help="Accept an encoder with properties that no source confirms, and a file with another hash than the "
    "published one.",
)
@shared.mpp_option("--mpp", "Resolution of the tiles in µm/px.", default=0.5)
@click.option(
    "--tile",
    type=click.IntRange(1),
    help="Width of a tile in pixels. By default the width that the encoder is made for, or 224.",
)
@click.option("--input", "input_px", type=click.IntRange(1), metavar="PX", help="Resize tiles to this size.")
@shared.out_option("DIR", "Folder for the features; an interrupted run resumes there.")
@shared.slide_options
@click.option(
    "--tissue-share",
    type=click.FloatRange(0, 1),
    default=0.1,
    help="Smallest share of a tile that must be tissue.",
)
@click.option(
    "--stains",
    type=click.Choice(["none", "macenko"]),
    default="none",
    show_default=True,
    help="Normalise the colours of every slide before its tiles are encoded.",
)
@click.option(
    "--layout", type=click.Choice(["trident", "clam"]), default="trident", help="Layout of the feature files."
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Type of the stored features; by default float16, and float32 for CLAM.",
)
@click.option(
    "--tokens",
    type=click.Choice(["none", "float16", "int8"]),
    default="none",
    show_default=True,
    help="Also store the tokens of the patches of every tile, in half precision or as 8-bit numbers.",
)
@shared.precision_option
@shared.scan_machine_options
@shared.jpeg_decoder_option
@click.option(
    "--keep-encoder/--no-keep-encoder",
    default=True,
    help="Store the weights with the features, so that a bundle trained on them can scan slides.",
)
@shared.cluster_options
@shared.fresh_option("existing features")
@shared.retry_failed_option
@shared.dry_run_option
def command(cases: tuple[str, ...], out: str, dry_run: bool, **options: Any) -> CommandOutput:
    """Compute features of every tissue tile and write one HDF5 file per case; resumable.

    The files can be read by `lobule train chowder --set features=DIR` and by tools for files of TRIDENT or
    CLAM.
    """
    cohort = shared.cohort_of(cases)
    options["tissue"] = shared.tissue_of(options)
    if dry_run:
        return plan(cohort, out, options)
    shared.check_form(options)
    from lobule.api import extract_features
    from lobule.scanning.progress import Progress

    progress = Progress()
    with sigterm_as_interrupt(), live_line(lambda: line_of(progress)):
        report = extract_features(cohort, out, progress=progress, **options)
    data = {"features": out, **report_data(report), "tiles": report.counters.fields_done}
    folder = out if len(options["encoder"]) == 1 else f"{out}/ENCODER"
    text = as_text(report, folder, progress.precision)
    return CommandOutput(data, text, failed=len(report.failed) + len(report.partial))


def plan(cohort: Cohort, out: str, options: dict[str, Any]) -> CommandOutput:
    """Describe an extraction without starting it."""
    from lobule.api.features import with_weights
    from lobule.encoders import find_entry

    for name, _ in with_weights(options["encoder"], options["weights"]):
        if find_entry(name, unverified=options["unverified"]) is None:
            from lobule.nets.encoders import refuse_unknown

            refuse_unknown(name)
    data = {"encoder": ", ".join(options["encoder"]), "mpp": options["mpp"]}
    data |= {"tile": options["tile"] or "that of the encoder", "features": out}
    lines = [*((name, str(value)) for name, value in data.items()), ("cases", str(len(cohort)))]
    return CommandOutput({**data, "cases": [case.id for case in cohort]}, format_fields(lines))


def as_text(report: ScanReport, out: str, precision: str) -> str:
    work = None
    if tiles := report.counters.fields_done:
        rate = tiles / max(report.seconds, 1e-9)
        work = ("tiles", f"{tiles:,} in {report.seconds:,.1f} s ({rate:,.1f} tiles/s)")
    next_step = f"lobule train chowder COHORT --out BUNDLE --set features={out}"
    lines = [("features", out), ("computed by", precision), *report_lines(report, work)]
    return format_fields([*lines, ("next step", next_step)])
