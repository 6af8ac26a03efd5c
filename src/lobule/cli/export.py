"""`lobule export`: write results in the formats of other software."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command, progress
from lobule.exports.export import EXPORTS
from lobule.exports.options import LAYERS
from lobule.results.result import RESEARCH_USE

if TYPE_CHECKING:
    from lobule.exports.run import ExportReport

MOST_LINES = 20


@lobule_command(
    "lobule export RESULTS --to qupath --out OUT",
    "lobule export RESULTS --to camelyon16 --out OUT",
    "lobule export RESULTS --to dicom-sr --out OUT --store https://HOST/dicom-web --show-patients",
)
@click.argument("results")
@click.option("--to", required=True, type=click.Choice(list(EXPORTS)), metavar="FORMAT",
              help=f"Format to write: {', '.join(EXPORTS)}.")  # fmt: skip
@click.option("--out", required=True, metavar="DIR", help="Folder for the files.")
@click.option("--case", "cases", multiple=True, metavar="NAME", help="Export only this case; repeatable.")
@click.option("--cohort", metavar="MANIFEST", help="Manifest with patients, sites and paths of the cases.")
@click.option("--slides", metavar="DIR", help="Folder that is searched for images that have moved.")
@click.option("--layer", "layers", multiple=True, type=click.Choice(LAYERS),
              help="Write only this layer; repeatable.")  # fmt: skip
@click.option("--min-score", type=float, metavar="S", help="Leave out findings and tiles with a lower score.")
@click.option("--map", "map_name", metavar="NAME", help="The map to export; by default the densest.")
@click.option("--uncropped", is_flag=True,
              help="Coordinates for a QuPath that opens slides without cropping them.")  # fmt: skip
@click.option("--source", metavar="DIR", help="DICOM files of the slides, for DICOM objects to refer to.")
@click.option("--ngff", type=click.Choice(["0.5", "0.4"]), default="0.5", show_default=True,
              help="Version of OME-Zarr.")  # fmt: skip
@click.option("--show-patients", is_flag=True, help="Write the names of patients.")
@click.option("--store", metavar="URL",
              help="Also store the DICOM objects on this DICOMweb server; nothing is replaced.")  # fmt: skip
@shared.cluster_options
@click.option("--fresh", is_flag=True, help="Write all cases again, also those that have not changed.")
def command(results: str, to: str, out: str, **options: Any) -> CommandOutput:
    """Write results in the format of other software, case by case; resumable.

    Cases that an earlier call exported and that have not changed are skipped. FORMAT.export.json in the
    folder lists the files of each case, and what is missing. Research use only, and every object says so.
    """
    from lobule.api import export

    with progress("exporting", None, "cases") as advance:
        report = export(results, to, out, progress=lambda case: advance(1), **options)
    return CommandOutput(report.to_dict(), as_text(report), failed=report.failed)


def as_text(report: ExportReport) -> str:
    """Format the report for a terminal."""
    count = len(report.exported)
    cases = f"{count:,} of {len(report.records):,} exported"
    if report.skipped:
        cases += f", {report.skipped:,} of them earlier"
    lines = [("format", report.format), ("folder", str(Path(report.path))), ("cases", cases)]
    if report.files:
        lines.append(("all cases", ", ".join(report.files)))
    remarks = [
        (record.case, " ".join([*([record.error] if record.error else []), *record.notes]))
        for record in report.records
        if record.error or record.notes
    ]
    if report.store is not None:
        counts = f"{len(report.store.stored):,} stored, {len(report.store.present):,} were there already"
        lines += [("server", report.store.server), ("objects", counts)]
        remarks += list(report.store.failed.items())
    blocks = [format_fields(lines)]
    if remarks:
        shown = [f"  {case}: {sentences}" for case, sentences in remarks[:MOST_LINES]]
        if len(remarks) > MOST_LINES:
            shown.append(f"  and {len(remarks) - MOST_LINES:,} more; see {report.format}.export.json")
        blocks.append("\n".join(["missing", *shown]))
    return "\n\n".join([*blocks, RESEARCH_USE])
