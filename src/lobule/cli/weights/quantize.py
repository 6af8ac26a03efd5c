"""`lobule weights quantize`: write a bundle with int8 models for OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.running import sigterm_as_interrupt

if TYPE_CHECKING:
    from lobule.bundles import Bundle


@lobule_command("lobule weights quantize BUNDLE cohort.csv --out OUT")
@click.argument("bundle")
@click.argument("cases", nargs=-1, required=True, metavar="COHORT|SLIDE...")
@click.option("--out", required=True, metavar="DIR", help="Folder for the quantised bundle.")
@click.option(
    "--fields", type=click.IntRange(8), default=200, help="Fields or tiles with tissue to calibrate on."
)
@click.option(
    "--scans", type=click.IntRange(0), default=4, help="Cases to scan in float32 and int8 for the report."
)
@click.option("--fresh", is_flag=True, help="Replace an existing bundle.")
@shared.slide_mpp_option
@shared.max_ram_option
@click.option("--trust", is_flag=True, help="Allow a TorchScript bundle, which can run code.")
def command(bundle: str, cases: tuple[str, ...], out: str, **options: Any) -> CommandOutput:
    """Write a bundle whose networks run in int8, calibrated on the tissue of a few slides.

    Scans with the new bundle use int8 if the extra `openvino` is installed. The report says how far scores
    are from those in float32. Needs the extra `quantize`.
    """
    from lobule.bundles import check_no_bundle, read_bundle

    # Wrong paths are reported before torch is imported, which takes seconds.
    check_no_bundle(out, options["fresh"])
    cohort = shared.cohort_of(cases)
    read_bundle(bundle)
    from lobule.api.quantization import REPORT, quantize

    with sigterm_as_interrupt():
        quantized = quantize(bundle, cohort, out, **options)
    data = {"bundle": out, "fingerprint": quantized.fingerprint, "report": quantized.provenance[REPORT]}
    return CommandOutput(data, _text(quantized, out))


def _text(bundle: Bundle, out: str) -> str:
    from lobule.api.quantization import REPORT

    report = bundle.provenance[REPORT]
    cells, scans = report["fields"], report["scans"]
    rank = cells["rank_correlation"]
    lines = [
        ("bundle", out),
        ("int8 models", ", ".join("x".join(map(str, model["shape"])) for model in report["models"])),
        ("score of a cell", f"changes by {cells['mean']:.2g} on average, at most {cells['largest']:.2g}"),
        ("rank correlation", "undefined" if rank is None else f"{rank:.4f} over {cells['cells']:,} cells"),
    ]
    if scans["largest_change"] is not None:
        cases = "1 case" if scans["cases"] == 1 else f"{scans['cases']} cases"
        lines.append(("slide score", f"changes by at most {scans['largest_change']:.2g} in {cases}"))
    if scans["without_score"]:
        lines.append(("without score", ", ".join(scans["without_score"])))
    return format_fields(lines)
