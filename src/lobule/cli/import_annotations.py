"""`lobule import`: annotations of other software for the cases of a cohort."""

from __future__ import annotations

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.errors import UsageError


@lobule_command("lobule import cohort.csv --from corrected --out OUT")
@click.argument("cohort")
@click.option("--from", "folder", required=True, metavar="DIR",
              help="Folder with one annotation per case, named like the case.")  # fmt: skip
@click.option("--out", required=True, metavar="DIR", help="Folder for the annotations and the manifest.")
@click.option("--uncropped", is_flag=True, help="The coordinates are not relative to the slide's bounds.")
@click.option("--group", "groups", multiple=True, metavar="NAME=KIND",
              help="The kind of a class: tumour, exclusion or normal; repeatable.")  # fmt: skip
def command(cohort: str, folder: str, out: str, uncropped: bool, groups: tuple[str, ...]) -> CommandOutput:
    """Read annotations of QuPath, ASAP, COCO, DSA or DICOM, and write a manifest with them.

    Each annotation is converted to GeoJSON in level-0 pixels of the whole slide. GeoJSON of QuPath is taken
    to be relative to the bounds of the slide, because QuPath crops slides; --uncropped changes this. Cases
    without an annotation keep the one in the manifest.
    """
    from lobule.api import import_annotations

    if malformed := [group for group in groups if "=" not in group]:
        raise UsageError(
            f"--group '{malformed[0]}' states no kind",
            expected="NAME=KIND, such as --group Carcinoma=tumour",
            remedy="See lobule import --help",
        )
    kinds = dict(group.partition("=")[::2] for group in groups)
    report = import_annotations(cohort, folder, out, uncropped=uncropped, groups=kinds)
    lines = [("manifest", report["manifest"]), ("annotations", f"{len(report['imported']):,}")]
    lines += [
        ("note", f"{case}: {warning}")
        for case, warnings in report["warnings"].items()
        for warning in warnings
    ]
    lines += [("without", ", ".join(report["without"]))] if report["without"] else []
    return CommandOutput(report, format_fields(lines))
