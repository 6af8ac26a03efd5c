"""`lobule check`: leaks, duplicates and confounding in the splits of a cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, progress

if TYPE_CHECKING:
    from lobule.audit import CohortAudit
    from lobule.audit.duplicates import NearDuplicate


REPORT = "check.json"


@lobule_command("lobule check cohort.csv", "lobule check cohort.csv --no-pixels")
@click.argument("cohort", metavar="COHORT")
@click.option(
    "--pixels/--no-pixels", default=True, help="Also look for near duplicates, which reads every image."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads that read images; by default one per core."
)
@click.option(
    "--out", metavar="DIR", help="Folder for check.json, and for pictures from which a later call continues."
)
def command(cohort: str, pixels: bool, threads: int | None, out: str | None) -> CommandOutput:
    """Check the splits of a cohort for leaks, duplicates and confounding.

    The report has one list for each kind of problem: patients in several splits; files with the same
    content; near duplicates, which are images of different cases that show the same pixels even if one was
    compressed again, cropped by up to 20 %, rotated by quarter turns, mirrored or rescaled; and sites whose
    labels differ, so that a model can learn the site instead of the disease.

    With --out, the small pictures of the images are stored, so that an interrupted check continues where it
    stopped, and a later one reads only new cases and files that have changed.

    The exit status is 1 if there is any problem or if a case cannot be read.
    """
    from lobule.audit import check
    from lobule.cohort import read_cohort
    from lobule.files import make_folder, write_json

    table = read_cohort(cohort, check_files=False, check_splits=False)
    with progress("reading images", total=len(table), unit="cases") as advance:
        audit = check(table, pixels=pixels, threads=threads, work=out, progress=advance)
    if out is not None:
        write_json(make_folder(out) / REPORT, as_json(audit))
    return CommandOutput(as_json(audit), as_text(audit), audit.problems + len(audit.unreadable))


def as_json(audit: CohortAudit) -> dict[str, Any]:
    """Return the audit as data for `--json`."""
    return {
        "cases": audit.cases,
        "pictures": audit.pictures,
        "problems": audit.problems,
        "patients_in_several_splits": [
            {"patient": shared.patient, "cases": {name: list(ids) for name, ids in shared.cases.items()}}
            for shared in audit.patients
        ],
        "equal_files": [
            {"cases": list(group.cases), "files": list(group.files), "splits": list(group.splits)}
            for group in audit.files
        ],
        "near_duplicates": [_pair_as_json(pair) for pair in audit.near_duplicates],
        "confounding": [
            {
                "column": item.column,
                "association": item.association,
                "p": item.p,
                "patients": {value: dict(counts) for value, counts in item.patients.items()},
            }
            for item in audit.confounding
        ],
        "unreadable": audit.unreadable,
    }


def _pair_as_json(pair: NearDuplicate) -> dict[str, Any]:
    return {
        "cases": [pair.first.case, pair.second.case],
        "images": [pair.first.image, pair.second.image],
        "splits": list(pair.splits),
        "correlation": pair.correlation,
        "window": list(pair.window),
        "mirrored": pair.mirrored,
        "quarter_turns": pair.turns,
    }


def as_text(audit: CohortAudit) -> str:
    """Format the audit, with one list for each kind of problem."""
    lists = {
        "patients in several splits": [
            f"{shared.patient}: "
            + "; ".join(f"{name} {', '.join(ids)}" for name, ids in shared.cases.items())
            for shared in audit.patients
        ],
        "equal files": [
            f"{', '.join(group.cases)}{_across(group.splits)}: {', '.join(group.files)}"
            for group in audit.files
        ],
        "near duplicates": [_pair_as_text(pair) for pair in audit.near_duplicates],
        "confounding": [
            f"{item.column} and label: association {item.association:.2f} (p = {item.p:.2g}); "
            + "; ".join(
                f"{value}: {', '.join(f'{label} {count}' for label, count in counts.items())}"
                for value, counts in item.patients.items()
            )
            for item in audit.confounding
        ],
        "unreadable": [f"{case}: {reason}" for case, reason in audit.unreadable.items()],
    }
    pairs = [("cases", f"{audit.cases}, {audit.pictures} images compared in {audit.seconds:.1f} s")]
    pairs += [(name, "\n".join(lines) or "none") for name, lines in lists.items()]
    return format_fields(pairs)


def _across(splits: tuple[str, ...]) -> str:
    return f" (in {' and '.join(splits)})" if len(splits) > 1 else ""


def _pair_as_text(pair: NearDuplicate) -> str:
    left, right, top, bottom = pair.window
    changes = []
    if (right - left) * (bottom - top) < 0.995:
        changes.append("cropped")
    if pair.mirrored:
        changes.append("mirrored")
    if pair.turns:
        changes.append(f"rotated by {90 * pair.turns}°")
    names = [
        picture.case if picture.image in ("slide", "image", "region") else f"{picture.case} {picture.image}"
        for picture in (pair.first, pair.second)
    ]
    transformations = f", {' and '.join(changes)}" if changes else ""
    return f"{' and '.join(names)}{_across(pair.splits)}: correlation {pair.correlation:.3f}{transformations}"
