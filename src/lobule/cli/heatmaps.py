"""`lobule heatmaps`: write the heatmaps of exams in the layout of the published four-view tools."""

from __future__ import annotations

from typing import Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.running import live_line, report_data, report_lines, sigterm_as_interrupt
from lobule.cli.scan import line_of
from lobule.errors import UsageError


@lobule_command("lobule heatmaps FOUR_VIEW exams/cohort.csv --out heatmaps")
@click.argument("bundle")
@click.argument("cases", nargs=-1, required=True, metavar="COHORT")
@shared.out_option("DIR", "Folder for the heatmaps; an interrupted run resumes there.")
@shared.settings_option
@shared.precision_option
@shared.scan_machine_options
@shared.fresh_option("existing heatmaps")
@shared.retry_failed_option
def command(bundle: str, cases: tuple[str, ...], out: str, **options: Any) -> CommandOutput:
    """Write the benign and the malignant heatmap of every view, at full resolution.

    BUNDLE is a four-view model with a patch network. The files are those of the published tools:
    heatmap_benign/NAME.hdf5 and heatmap_malignant/NAME.hdf5 with the dataset image. `lobule scan` reads such
    files with --set reading.heatmap_files=DIR.
    """
    from lobule.bundles import read_bundle

    cohort, opened = shared.cohort_of(cases), read_bundle(bundle)
    if opened.method != "four_view":
        raise UsageError("heatmaps come from a four_view bundle", subject=bundle, actual=opened.method)
    shared.check_form(options)
    from lobule.methods.four_view import METHOD, load
    from lobule.methods.four_view.heatmap_writer import write_cohort_heatmaps
    from lobule.scanning.progress import Progress
    from lobule.scanning.scan import Machine

    progress = Progress()
    resources = ("device", "precision", "max_ram", "readers", "batch", "runtime")
    machine = Machine.with_layout(options["memory_layout"], *(options[name] for name in resources))
    with sigterm_as_interrupt(), live_line(lambda: line_of(progress)):
        report = write_cohort_heatmaps(
            load(opened),
            opened.fingerprint,
            cohort,
            out,
            METHOD.changed_for_scan(options["settings"]),
            machine,
            fresh=options["fresh"],
            retry_failed=options["retry_failed"],
            progress=progress,
        )
    text = format_fields(
        [
            ("heatmaps", out),
            *report_lines(report, None),
            ("read them with", f"--set reading.heatmap_files={out}"),
        ]
    )
    return CommandOutput({"heatmaps": out, **report_data(report)}, text, failed=len(report.failed))
