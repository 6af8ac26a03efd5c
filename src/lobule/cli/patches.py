"""`lobule patches`: the published evaluations of reverse distillation on patches."""

from __future__ import annotations

from typing import Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.options import cohort_of, device_option
from lobule.errors import UsageError


@lobule_command(
    "lobule patches ANOMALY cohort.csv --coords normal.txt --coords tumour.txt",
    "lobule patches ANOMALY --wsss4luad WSSS4LUAD",
)
@click.argument("bundle")
@click.argument("cases", nargs=-1, metavar="[COHORT]")
@click.option(
    "--coords",
    multiple=True,
    metavar="FILE",
    help="Lists of patch centres, normal then tumour, with lines of slide,x,y in level-0 pixels.",
)
@click.option("--wsss4luad", metavar="DIR", help="Evaluate the images of WSSS4LUAD in this folder instead.")
@device_option
def command(bundle: str, cases: tuple[str, ...], **options: Any) -> CommandOutput:
    """Score patches by the mean and the maximum of their anomaly maps, and compare with their classes.

    Prints the area under the ROC curve, and the accuracy at the threshold with the best F1, which is chosen
    on the same patches as in the paper and is therefore optimistic. For WSSS4LUAD, pixels are evaluated as
    well, without background. The precision is float32.
    """
    if bool(options["wsss4luad"]) == bool(cases) or bool(cases) != bool(options["coords"]):
        raise UsageError(
            "patches are either listed for a cohort or those of WSSS4LUAD",
            expected="COHORT with --coords, or --wsss4luad DIR",
        )
    from lobule.bundles import read_bundle

    cohort = cohort_of(cases) if cases else None
    opened = read_bundle(bundle)
    if opened.method != "reverse_distillation":
        raise UsageError(
            "patches need a bundle of reverse_distillation", subject=bundle, actual=opened.method
        )
    from lobule.methods.reverse_distillation import load
    from lobule.methods.reverse_distillation.patch_protocol import (
        PatchMaps,
        evaluate_listed,
        evaluate_wsss4luad,
    )
    from lobule.scanning.device import choose_device

    maps = PatchMaps(load(opened), choose_device(options["device"]))
    if cohort is None:
        data = evaluate_wsss4luad(maps, options["wsss4luad"])
    else:
        data = evaluate_listed(maps, cohort, options["coords"])
    return CommandOutput(data, format_fields(_lines(data)))


def _lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        (name.replace("_", " "), str(value)) for name, value in data.items() if not isinstance(value, dict)
    ]
    for name, figures in data.items():
        if isinstance(figures, dict):
            text = f"AUROC {figures['auroc']:.4f}, accuracy {figures['accuracy']:.4f} at the best F1"
            lines.append((name.replace("_", " "), f"{text} (threshold {figures['threshold']:.4f})"))
    return lines
