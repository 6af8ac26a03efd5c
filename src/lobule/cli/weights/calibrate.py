"""`lobule weights calibrate`: a bundle's scores made probabilities on a site's labelled cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import Answer, format_fields, lobule_command, table

if TYPE_CHECKING:
    from lobule.bundles import Bundle


@lobule_command("lobule weights calibrate BUNDLE RESULTS cohort-scanned.csv --out OUT")
@click.argument("bundle")
@click.argument("results")
@click.argument("cohort")
@click.option("--out", required=True, metavar="DIR", help="Where the calibrated bundle goes.")
@click.option(
    "--fit",
    type=click.Choice(["platt", "isotonic"]),
    default="platt",
    show_default=True,
    help="Platt's curve of two numbers, or a rising staircase, which needs hundreds of cases.",
)
@click.option(
    "--sensitivity",
    "sensitivities",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Record the threshold that reaches it; repeatable; 0.9 and 0.95 if not given.",
)
@click.option("--split", metavar="NAME", help="Only the cases of this split.")
@click.option("--allow-overlap", is_flag=True, help="Calibrate on training patients too, which is too kind.")
def command(bundle: str, results: str, cohort: str, out: str, **options: Any) -> Answer:
    """Calibrate a bundle to a site: RESULTS are what BUNDLE said of the labelled cases of COHORT.

    Scans with the new bundle give calibrated scores, keep the raw ones beside them, and say which thresholds
    are reached. Evaluations refuse the patients that it was calibrated on. Research use only.
    """
    from lobule.cohort import read_cohort
    from lobule.evaluation.calibrate import SENSITIVITIES, calibrate

    calibrated = calibrate(
        bundle,
        results,
        read_cohort(cohort, check_files=False),
        out,
        fit=options["fit"],
        sensitivities=options["sensitivities"] or SENSITIVITIES,
        split=options["split"],
        allow_overlap=options["allow_overlap"],
    )
    return Answer(
        {"bundle": out, "fingerprint": calibrated.fingerprint, "calibration": dict(calibrated.calibration)},
        _text(calibrated, out),
    )


def _text(bundle: Bundle, out: str) -> str:
    targets = bundle.calibration["targets"]
    lines = [("bundle", out)]
    rows = []
    for name, target in targets.items():
        unit = next(key for key in target if key.endswith("s") and isinstance(target[key], int))
        errors = (target[when]["expected_error"] for when in ("before", "after"))
        before, after = ("–" if error is None else f"{error:.3f}" for error in errors)
        lines.append(
            (
                name,
                f"{target['fit']['kind']} on {target[unit]} {unit}, {target['positive']} positive; "
                f"expected calibration error {before} before, {after} after, on these very cases",
            )
        )
        rows += [
            [
                name,
                f"{p['wanted']:g}",
                f"{p['threshold']:.4g}",
                f"{p['sensitivity']:.3f}",
                f"{p['specificity']:.3f}",
            ]
            for p in target["thresholds"]
        ]
    header = ["target", "sensitivity wanted", "threshold", "sensitivity", "specificity"]
    return f"{format_fields(lines)}\n\n{table(header, rows)}"
