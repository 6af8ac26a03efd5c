"""`lobule phantom`: generate cohorts of slides, images and exams with exact ground truth."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lobule.cli.base import CommandOutput, LazyGroup, lobule_command, progress
from lobule.cli.cohort import describe, summary
from lobule.cli.options import combine_decorators
from lobule.errors import UsageError

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "slides": ("lobule.cli.phantom:slides", "Slides with lesions, outlines and class masks."),
    "images": ("lobule.cli.phantom:images", "Labelled images: normal, benign, in situ and invasive."),
    "exams": ("lobule.cli.phantom:exams", "Four-view mammography exams, as PNG or DICOM."),
}

command = LazyGroup(
    "phantom",
    SUBCOMMANDS,
    help="Generate cohorts of any size with exact ground truth. No patient data is used.",
)


def parse_size(value: str) -> tuple[int, int]:
    """Parse a size such as "6144x4096" into width and height."""
    match = re.fullmatch(r"(\d+)\s*[x×,]\s*(\d+)", value)
    if not match:
        raise click.BadParameter(
            f"'{value}' is not a size. Use width and height in pixels, such as 6144x4096."
        )
    return int(match[1]), int(match[2])


def size_option(default: str, help: str) -> Callable[[Any], Any]:
    """Return the option `--size`, whose value is parsed into width and height."""
    return click.option("--size", type=parse_size, default=default, metavar="WxH", help=help)


sites_option = click.option(
    "--sites", default=2, help="Number of hospitals; each has its own stain or detector."
)
patient_options = combine_decorators(
    click.option("--patients", type=int, help="Number of patients; by default one per case."),
    click.option("--unseen-site", is_flag=True, help="Use the last site only in the test split."),
)
output_options = combine_decorators(
    click.option("--seed", default=0, help="Seed; the same seed gives identical files."),
    click.option("--force", is_flag=True, help="Overwrite an existing cohort."),
)


@lobule_command("lobule phantom slides OUT --count 2 --size 2048x1536")
@click.argument("out")
@click.option("--count", default=4, help="Number of slides.")
@size_option("6144x6144", "Size of level 0 in pixels.")
@click.option("--mpp", default=0.5, help="µm/px of level 0.")
@click.option("--normal", default=0.5, help="Share of slides without tumour.")
@click.option("--organ", type=click.Choice(["node", "breast"]), default="node",
              help="Tissue of the slides: lymph node or breast.")  # fmt: skip
@click.option("--mimics", default=2, help="Normal regions per slide that resemble tumour.")
@click.option("--layout", type=click.Choice(["folder", "camelyon16"]), default="folder",
              help="Names and folders of the files: plain, or those of Camelyon16.")  # fmt: skip
@click.option("--style", type=click.Choice(["generic", "svs", "ome"]), default="generic",
              help="Kind of TIFF, which determines how the file states its µm/px.")  # fmt: skip
@sites_option
@patient_options
@output_options
def slides(
    out: str,
    count: int,
    size: tuple[int, int],
    mpp: float,
    organ: str,
    mimics: int,
    force: bool,
    **options: Any,
) -> CommandOutput:
    """Generate slides as tiled pyramids, with outlines, class masks and a manifest."""
    check_no_existing_cohort(out, force)
    from lobule.phantoms.cohorts import write_slide_cohort
    from lobule.phantoms.phantom import SlidePhantom

    template = SlidePhantom(0, *size, mpp, mimics=mimics, organ=organ)
    with progress("slides", count, "slides") as advance:
        manifest = write_slide_cohort(
            out, slides=count, like=template, progress=lambda done, total: advance(1), **options
        )
    return describe_written_cohort(manifest)


@lobule_command("lobule phantom images OUT --count 4 --size 640x480")
@click.argument("out")
@click.option(
    "--count", default=40, help="Number of images; rounded up to a multiple of four, the number of classes."
)
@size_option("2048x1536", "Size of an image in pixels.")
@click.option("--mpp", default=0.42, help="µm/px of the images.")
@click.option("--form", type=click.Choice(["tif", "png"]), default="tif", help="File format of the images.")
@sites_option
@patient_options
@output_options
def images(out: str, count: int, force: bool, **options: Any) -> CommandOutput:
    """Generate images of four classes in the layout of BACH, and a manifest.

    The classes are normal, benign, in situ and invasive.
    """
    check_no_existing_cohort(out, force)
    from lobule.phantoms.images import write_images

    per_class = -(-count // 4)  # rounded up
    with progress("images", per_class * 4, "images") as advance:
        manifest = write_images(out, per_class, progress=lambda done, total: advance(1), **options)
    return describe_written_cohort(manifest)


@lobule_command("lobule phantom exams OUT --count 1 --size 475x650")
@click.argument("out")
@click.option("--count", default=10, help="Number of exams; each has four views.")
@size_option("1900x2600", "Size of a view in pixels.")
@click.option("--form", type=click.Choice(["png", "dicom"]), default="png", help="File format of the views.")
@click.option("--malignant", default=0.4, help="Share of breasts with a malignant lesion.")
@click.option("--benign", default=0.3, help="Share of breasts with a benign lesion.")
@sites_option
@output_options
def exams(out: str, count: int, size: tuple[int, int], force: bool, **options: Any) -> CommandOutput:
    """Generate four-view exams with breast labels, lesion outlines and a manifest."""
    check_no_existing_cohort(out, force)
    from lobule.phantoms.exams import write_exams

    with progress("exams", None, "exams"):
        width, height = size
        manifest = write_exams(out, exams=count, size=(height, width), **options)
    return describe_written_cohort(manifest)


def check_no_existing_cohort(out: str, force: bool) -> None:
    """Raise an error if the folder already contains a manifest, unless `force` is set."""
    if (Path(out) / "cohort.csv").exists() and not force:
        raise UsageError(
            "the folder already contains a cohort", subject=out, remedy="Pass --force to overwrite it"
        )


def describe_written_cohort(manifest: Path) -> CommandOutput:
    """Read a manifest that was just written, and return a summary of its cohort."""
    from lobule.cohort import read_cohort

    cohort = read_cohort(manifest)
    return CommandOutput(summary(cohort, str(manifest)), describe(cohort, str(manifest)))
