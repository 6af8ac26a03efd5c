"""`lobule report`: one page per case and one about all cases, as HTML and PDF."""

from __future__ import annotations

from typing import Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, lobule_command, progress
from lobule.cli.export import as_text


@lobule_command("lobule report RESULTS --cohort cohort-scanned.csv --out OUT")
@click.argument("results")
@click.option("--out", required=True, metavar="DIR", help="Folder for the pages.")
@click.option("--case", "cases", multiple=True, metavar="NAME", help="Report only this case; repeatable.")
@click.option("--cohort", metavar="MANIFEST", help="Manifest with labels, sites and paths of the cases.")
@click.option("--slides", metavar="DIR", help="Folder that is searched for images that have moved.")
@click.option("--bundle", metavar="BUNDLE", help="The bundle of the results, for the CLAIM 2024 table.")
@click.option("--pdf", is_flag=True, help="Also write each page as PDF.")
@click.option("--min-score", type=float, metavar="S", help="Leave out findings with a lower score.")
@click.option("--show-patients", is_flag=True, help="Write the names of patients.")
@shared.cluster_options
@click.option("--fresh", is_flag=True, help="Write all pages again, also those that have not changed.")
def command(results: str, out: str, **options: Any) -> CommandOutput:
    """Write one self-contained page per case, and index.html about all cases.

    A page opens with the ten highest-scoring fields, then shows the map, the findings, the scores, what
    failed and how it was made. Pages that an earlier call wrote and that have not changed are skipped.
    Research use only, and every page says so.
    """
    from lobule.api import report

    with progress("writing pages", None, "cases") as advance:
        written = report(results, out, progress=lambda case: advance(1), **options)
    return CommandOutput(written.to_dict(), as_text(written), failed=written.failed)
