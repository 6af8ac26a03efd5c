"""Options that several commands share. An option has the same name and meaning in every command."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lobule.errors import UsageError

if TYPE_CHECKING:
    from lobule.cohort import Cohort


def combine_decorators(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Combine decorators; the help shows their options in this order."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def _converted_by(convert: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a callback of click that converts the value of an option."""
    return lambda context, parameter, value: convert(value)


def out_option(metavar: str, help: str) -> Callable[[Any], Any]:
    return click.option("--out", required=True, metavar=metavar, help=help)


def mpp_option(name: str, help: str, default: float | None = None) -> Callable[[Any], Any]:
    """Return an option for a resolution, which must be a positive finite number."""

    def check(value: float | None) -> float | None:
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(
                f"{name} {value:g} is not a valid resolution", expected="µm per pixel, such as 0.25"
            )
        return value

    return click.option(
        name, type=float, default=default, metavar="UM", callback=_converted_by(check), help=help
    )


def as_bytes(text: str, option: str = "--max-ram") -> int:
    """Parse a size such as 2GiB, 500MB, 1.5g or a number of bytes."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    try:
        assert match is not None
        number = float(match[1])
    except (AssertionError, ValueError):
        raise UsageError(f"{option} '{text}' is not a size", expected="such as 2GiB or 1500MB") from None
    base = 1000 if match[2] and not match[3] and text.lower().rstrip().endswith("b") else 1024
    size = int(number * base ** " kmgt".index(match[2] or " "))
    if size <= 0:
        raise UsageError(f"{option} '{text}' leaves no memory", expected="such as 2GiB")
    return size


def cohort_of(cases: tuple[str, ...]) -> Cohort:
    """Return the cohort of a manifest or of slides; a missing file is an error before torch is imported."""
    from lobule.cohort import as_cohort
    from lobule.files import is_url

    for path in cases:
        if not is_url(path) and not Path(path).exists():
            raise UsageError("there is no such file or folder", subject=path, remedy="Check its name")
    return as_cohort(cases[0] if len(cases) == 1 else list(cases))


def parse_settings(assignments: tuple[str, ...]) -> dict[str, str]:
    """Parse `key=value` texts into a dictionary; hyphens in keys become underscores."""
    pairs = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"cannot parse the setting '{assignment}'", expected="--set key=value")
        pairs[key.strip().replace("-", "_")] = value.strip()
    return pairs


slide_mpp_option = mpp_option("--slide-mpp", "µm/px of slides that do not state it.")
device_option = click.option(
    "--device", default="auto", help="auto, cpu, mps, cuda:0, or several GPUs for a scan: cuda:0,cuda:2."
)
max_ram_option = click.option(
    "--max-ram",
    default="2GiB",
    metavar="SIZE",
    callback=_converted_by(as_bytes),
    help="Memory to use in addition to the model.",
)
seed_option = click.option("--seed", default=0)
workers_option = click.option(
    "--workers", type=click.IntRange(1), help="Workers that sample patches; by default one per core."
)
val_option = click.option(
    "--val",
    default="val",
    metavar="SPLIT",
    callback=_converted_by(lambda value: None if value == "none" else value),
    help="Split for validation: val, test or none.",
)
settings_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_converted_by(parse_settings),
    help="Change a setting of the method (see `lobule methods NAME`); repeatable.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be done and stop.")
retry_failed_option = click.option("--retry-failed", is_flag=True, help="Try failed cases and fields again.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="auto uses what is fastest on this machine.",
)
runtime_option = click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="auto",
    help="Library that computes on a CPU; auto uses the faster of the installed ones.",
)
scan_precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
    default="auto",
    help="auto uses what is fastest on this machine; int8 needs a quantised bundle.",
)

tissue_method_option = click.option(
    "--tissue-method",
    type=click.Choice(["stain", "camelyon"]),
    default="stain",
    show_default=True,
    help="How tissue is detected: by stain, or by Otsu thresholds as in the papers on Camelyon16.",
)

slide_options = combine_decorators(
    slide_mpp_option,
    click.option("--upsample", is_flag=True, help="Allow a resolution finer than that of the slide."),
    click.option("--tissue/--no-tissue", default=True, help="Use only tissue, or whole slides."),
    tissue_method_option,
)
"""How slides are read."""


def tissue_of(options: dict[str, Any]) -> Any:
    """Take the options of the tissue detection out of `options`, and return the argument of the API."""
    method, tissue = options.pop("tissue_method"), options.pop("tissue", True)
    if method == "stain" or not tissue:
        return tissue
    from lobule.tissue import TissueConfig

    return TissueConfig(method=method)


def check_form(options: Mapping[str, Any], has_int8: bool = False) -> None:
    """Refuse a runtime or a precision that cannot be used, before torch is imported, which takes seconds.

    Args:
        options: The options of the command.
        has_int8: Whether the bundle has int8 models.
    """
    from lobule.scanning.requested_form import check_requested_form, requested_runtime

    runtime = requested_runtime(options["runtime"])
    check_requested_form(options["precision"], runtime, options["device"], has_int8)


scan_machine_options = combine_decorators(
    runtime_option,
    click.option(
        "--memory-layout",
        type=click.Choice(["auto", "channels-last", "contiguous"]),
        default="auto",
        help="Memory layout of the model; auto works as for --precision.",
    ),
    device_option,
    max_ram_option,
    click.option("--readers", type=click.IntRange(1), help="Reading threads; by default one per core."),
    click.option("--batch", type=click.IntRange(1), help="Number of fields or tiles per batch."),
)
"""The resources of a scan."""


jpeg_decoder_option = click.option(
    "--jpeg-decoder",
    type=click.Choice(["cpu", "nvimagecodec"]),
    help="What decodes JPEG tiles: cpu (the default), or nvimagecodec on an NVIDIA GPU.",
)

cluster_options = combine_decorators(
    click.option(
        "--runner",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Work in this process, or with workers on Ray.",
    ),
    click.option("--address", metavar="HOST:PORT", help="With --runner ray: a running Ray cluster."),
    click.option("--workers", type=click.IntRange(1), help="With --runner ray: number of workers."),
    click.option("--worker-cpus", type=click.IntRange(1), help="With --runner ray: CPU cores of a worker."),
)
"""The workers on Ray."""


divide_above_option = click.option(
    "--divide-above",
    metavar="SIZE",
    callback=_converted_by(lambda text: None if text is None else as_bytes(text, "--divide-above")),
    help="With --runner ray: slides with a larger file are divided among all workers; by default 4GiB.",
)


def fresh_option(content: str) -> Callable[[Any], Any]:
    return click.option(
        "--fresh", is_flag=True, help=f"Delete {content} in this folder first, instead of continuing."
    )
