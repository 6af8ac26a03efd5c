"""`lobule cohort`: write a manifest for a folder, such as a public data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, progress
from lobule.errors import UsageError
from lobule.files import is_url
from lobule.layouts import LAYOUTS, read_layout

if TYPE_CHECKING:
    from lobule.cohort import Cohort

LAYOUT_NAMES = (*LAYOUTS, "dicom", "dicomweb")


@lobule_command(
    "lobule cohort photos --from folder --out photos.csv",
    "lobule cohort CAMELYON16 --from camelyon16 --out camelyon16.csv",
    "lobule cohort http://localhost:8042/dicom-web --from dicomweb --out slides.csv",
)
@click.argument("folder", metavar="DIR")
@click.option(
    "--from", "layout", type=click.Choice(LAYOUT_NAMES), required=True, help="Layout of the folder."
)
@click.option(
    "--out", metavar="FILE", help="Manifest to write (.csv or .parquet); by default DIR/cohort.csv."
)
@click.option(
    "--outlines", metavar="DIR", help="Folder for the outlines of lesions, converted; cbis-ddsm and inbreast."
)
@click.option("--force", is_flag=True, help="Replace an existing manifest.")
def command(folder: str, layout: str, out: str | None, outlines: str | None, force: bool) -> CommandOutput:
    """Write a cohort manifest for a folder.

    Most layouts are those of public data sets as they are released; docs/data.md says for each which files
    are read, what the labels mean, and what happens to official splits that share patients.
    dicom groups slides, or the views of mammography exams, by their DICOM headers. dicomweb does the same on
    a DICOMweb server, whose address replaces DIR; a query such as ?PatientID=7 restricts the studies. folder
    uses the name of each subfolder as a label.

    --outlines also converts the outlines of lesions, one GeoJSON file for each exam, and writes them into the
    column annotation. Files that an earlier call converted are used again.
    """
    from lobule.cohort import write_cohort

    if out is None and is_url(folder):
        raise UsageError("a cohort of a server needs a manifest to write", remedy="Add --out cohort.csv")
    manifest_path = Path(out) if out else Path(folder) / "cohort.csv"
    if manifest_path.exists() and not force:
        raise UsageError(
            "the manifest already exists", subject=manifest_path, remedy="Pass --force to replace it"
        )
    left_out: dict[str, str] = {}  # files that are not part of the cohort, with the reason
    if layout == "dicom":
        from lobule.cli.dicom_cohort import dicom

        cohort, left_out = dicom(folder)
    elif layout == "dicomweb":
        from lobule.cli.dicomweb_cohort import dicomweb

        cohort, left_out = dicomweb(folder)
    else:
        cohort = read_layout(layout, folder)
    if outlines is not None:
        cohort, left_out = _with_outlines(cohort, layout, folder, outlines)
    write_cohort(cohort, manifest_path)
    text = describe(cohort, str(manifest_path))
    if left_out:
        text += "\n\nleft out:\n" + "\n".join(f"  {file}: {reason}" for file, reason in left_out.items())
    return CommandOutput(summary(cohort, str(manifest_path)) | {"left_out": left_out}, text)


def _with_outlines(cohort: Cohort, layout: str, folder: str, outlines: str) -> tuple[Cohort, dict[str, str]]:
    """Convert the outlines of lesions; also return the files that cannot be used, with the reasons."""
    from lobule.layouts.lesions import write_lesions

    with progress("converting outlines", len(cohort), "exams") as advance:
        report = write_lesions(layout, folder, cohort, outlines, advance)
    return report.cohort, dict(report.left_out)


def summary(cohort: Cohort, manifest: str) -> dict[str, object]:
    """Return the numbers of cases, patients, splits, labels and sites, for `--json`."""
    return {
        "manifest": manifest,
        "cases": len(cohort),
        "kind": cohort.kind,
        "patients": len(cohort.patients()),
        "splits": dict(Counter(case.split for case in cohort if case.split)),
        "labels": dict(Counter(case.label for case in cohort if case.label)),
        "sites": dict(Counter(case.site for case in cohort if case.site)),
        "annotated": sum(case.annotation is not None for case in cohort),
        "notes": {case.id: case.attributes["note"] for case in cohort if "note" in case.attributes},
    }


def describe(cohort: Cohort, manifest: str) -> str:
    """Format the summary of a cohort as text."""
    summary_fields = summary(cohort, manifest)
    patients = f"{summary_fields['patients']} patient" + ("" if summary_fields["patients"] == 1 else "s")
    rows = [("manifest", manifest), ("cases", f"{len(cohort)} ({cohort.kind or 'mixed'}) of {patients}")]
    for name in ("splits", "labels", "sites"):
        counts = summary_fields[name]
        assert isinstance(counts, dict)
        if counts:
            rows.append((name, ", ".join(f"{value} {count}" for value, count in sorted(counts.items()))))
    if summary_fields["annotated"]:
        rows.append(("annotated", str(summary_fields["annotated"])))
    notes = Counter(case.attributes["note"] for case in cohort if "note" in case.attributes)
    if notes:
        rows.append(("notes", "\n".join(f"{count} × {note_text}" for note_text, count in notes.items())))
    return format_fields(rows)
