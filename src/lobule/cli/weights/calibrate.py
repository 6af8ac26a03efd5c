"""`lobule weights calibrate`: calibrate the scores of a bundle on labelled cases of a site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, table

if TYPE_CHECKING:
    from lobule.bundles import Bundle


@lobule_command("lobule weights calibrate BUNDLE RESULTS cohort-scanned.csv --out OUT")
@click.argument("bundle")
@click.argument("results")
@click.argument("cohort")
@click.option("--out", required=True, metavar="DIR", help="Folder for the calibrated bundle.")
@click.option(
    "--fit",
    type=click.Choice(["platt", "isotonic"]),
    default="platt",
    help="Platt scaling, or isotonic regression, which needs hundreds of cases.",
)
@click.option(
    "--sensitivity",
    "sensitivities",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Record the threshold that reaches this sensitivity; repeatable; by default 0.9 and 0.95.",
)
@click.option("--split", metavar="NAME", help="Use only the cases of this split.")
@click.option(
    "--allow-overlap", is_flag=True, help="Allow training patients; the calibration is then too optimistic."
)
def command(bundle: str, results: str, cohort: str, out: str, **options: Any) -> CommandOutput:
    """Calibrate a bundle to a site. RESULTS are a scan of the labelled cases of COHORT with BUNDLE.

    Scans with the new bundle report calibrated scores and raw scores, and which thresholds a score reaches.
    Evaluations refuse the patients of the calibration. Research use only.
    """
    from lobule.cohort import read_cohort
    from lobule.evaluation.calibrate import SENSITIVITIES, calibrate

    options["sensitivities"] = options["sensitivities"] or SENSITIVITIES
    calibrated = calibrate(bundle, results, read_cohort(cohort, check_files=False), out, **options)
    data = {"bundle": out, "fingerprint": calibrated.fingerprint, "calibration": dict(calibrated.calibration)}
    return CommandOutput(data, _text(calibrated, out))


def _text(bundle: Bundle, out: str) -> str:
    targets = bundle.calibration["targets"]
    lines = [("bundle", out)]
    rows = []
    for name, target in targets.items():
        unit = next(key for key in target if key.endswith("s") and isinstance(target[key], int))
        errors = (target[when]["expected_error"] for when in ("before", "after"))
        before, after = ("–" if error is None else f"{error:.3f}" for error in errors)
        fit = f"{target['fit']['kind']} on {target[unit]} {unit}, {target['positive']} positive"
        error = f"expected calibration error {before} before, {after} after, on the same cases"
        lines.append((name, f"{fit}; {error}"))
        for point in target["thresholds"]:
            rates = [f"{point[rate]:.3f}" for rate in ("sensitivity", "specificity")]
            rows.append([name, f"{point['wanted']:g}", f"{point['threshold']:.4g}", *rates])
    header = ["target", "target sensitivity", "threshold", "sensitivity", "specificity"]
    return f"{format_fields(lines)}\n\n{table(header, rows)}"
