"""`lobule features`: compute tile features of a cohort with a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.scan import LAYOUTS, _live_progress, _sigterm_as_interrupt, as_bytes, unscored_lines
from lobule.errors import UsageError

if TYPE_CHECKING:
    from lobule.scanning.scan import ScanReport


@lobule_command(
    "lobule features cohort.csv --backbone lobule:tiny --weights random --mpp 2 --out OUT",
    "lobule features cohort.csv --backbone resnet50 --mpp 0.5 --out OUT --dry-run",
)
@click.argument("cases", nargs=-1, required=True, metavar="COHORT|SLIDE...")
@click.option(
    "--backbone",
    default="resnet50",
    show_default=True,
    metavar="NAME",
    help="A torchvision model, timm:NAME (also timm:hf-hub:OWNER/MODEL), or lobule:NAME.",
)
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    metavar="FILE",
    help="A safetensors or torch file that contains only weights, `pretrained` (downloaded), or `random`.",
)
@click.option(
    "--mpp",
    type=float,
    default=0.5,
    show_default=True,
    metavar="UM",
    help="Resolution of the tiles in µm/px.",
)
@click.option(
    "--tile", type=click.IntRange(1), default=224, show_default=True, help="Width of a tile in pixels."
)
@click.option("--input", "input_px", type=click.IntRange(1), metavar="PX", help="Resize tiles to this size.")
@click.option(
    "--out", required=True, metavar="DIR", help="Folder for the features; an interrupted run resumes there."
)
@click.option("--slide-mpp", type=float, metavar="UM", help="µm/px of slides that do not state it.")
@click.option("--upsample", is_flag=True, help="Allow a resolution finer than that of the slide.")
@click.option("--tissue/--no-tissue", default=True, help="Use only tissue, or the whole slide.")
@click.option(
    "--tissue-share",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Smallest share of a tile that must be tissue.",
)
@click.option("--layout", type=click.Choice(["trident", "clam"]), default="trident", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Type of the stored features; by default float16, and float32 for CLAM.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto measures the fastest choice once per machine and encoder, and stores it.",
)
@click.option(
    "--memory-layout",
    type=click.Choice(list(LAYOUTS)),
    default="auto",
    show_default=True,
    help="Memory layout of the encoder, like --layout of `lobule scan`; auto works as for --precision.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps.")
@click.option(
    "--max-ram",
    default="2GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory to use in addition to the model.",
)
@click.option("--readers", type=click.IntRange(1), help="Reading threads; by default one per core.")
@click.option("--batch", type=click.IntRange(1), help="Number of tiles per batch.")
@click.option(
    "--keep-encoder/--no-keep-encoder",
    default=True,
    help="Store the weights with the features, so that a bundle trained on them can scan slides.",
)
@click.option("--retry-failed", is_flag=True, help="Try failed cases and tiles again.")
@click.option("--dry-run", is_flag=True, help="Print what would be computed and stop.")
def command(cases: tuple[str, ...], out: str, dry_run: bool, **options: Any) -> CommandOutput:
    """Compute features of every tissue tile and write one HDF5 file per case; resumable.

    The files can be read by `lobule train chowder --set features=DIR` and by tools for files of TRIDENT or
    CLAM.
    """
    from lobule.api import as_cohort

    if not 0 < options["mpp"] < float("inf"):
        raise UsageError(
            f"--mpp {options['mpp']:g} is not a valid resolution", expected="µm per pixel, such as 0.5"
        )
    cohort = as_cohort(cases[0] if len(cases) == 1 else list(cases))
    if dry_run:
        data = {
            "backbone": options["backbone"],
            "mpp": options["mpp"],
            "tile": options["tile"],
            "features": out,
        }
        text = [(name, str(value)) for name, value in data.items()]
        return CommandOutput(
            {**data, "cases": [case.id for case in cohort]},
            format_fields([*text, ("cases", str(len(cohort)))]),
        )
    report = _extract(cohort, out, options)
    failed = len(report.failed) + len(report.partial)
    return CommandOutput(as_data(report, out), as_text(report, out), failed=failed)


def _extract(cohort: Any, out: str, options: dict[str, Any]) -> ScanReport:
    from lobule.api import extract_features
    from lobule.scanning.cases import Progress

    machine = {name: options.pop(name) for name in ("device", "precision", "readers", "batch")}
    machine["channels_last"] = LAYOUTS[options.pop("memory_layout")]
    machine["max_ram"] = as_bytes(options.pop("max_ram"))
    progress = Progress()
    with _sigterm_as_interrupt(), _live_progress(progress):
        return extract_features(cohort, out, machine=machine, progress=progress, **options)


def as_data(report: ScanReport, out: str) -> dict[str, Any]:
    return {
        "features": out,
        "cases": dict(report.counts),
        "failed": dict(report.failed),
        "partial": list(report.partial),
        "unscored": dict(report.unscored),
        "seconds": round(report.seconds, 2),
        "tiles": report.counters.fields_done,
    }


def as_text(report: ScanReport, out: str) -> str:
    lines = [("features", out)]
    lines.append(("cases", ", ".join(f"{count} {status}" for status, count in sorted(report.counts.items()))))
    if tiles := report.counters.fields_done:
        rate = tiles / max(report.seconds, 1e-9)
        lines.append(("tiles", f"{tiles:,} in {report.seconds:,.1f} s ({rate:,.1f} tiles/s)"))
    lines += [(f"failed {name}", cause) for name, cause in list(report.failed.items())[:20]]
    if report.partial:
        lines.append(("partial", ", ".join(report.partial[:20])))
    lines += unscored_lines(report)
    if report.failed or report.partial:
        lines.append(("again", "run the same command with --retry-failed"))
    lines.append(("next step", f"lobule train chowder COHORT --out BUNDLE --set features={out}"))
    return format_fields(lines)
