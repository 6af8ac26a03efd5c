"""`lobule phantom`: generate cohorts of slides, images and exams with exact ground truth."""

from __future__ import annotations

import re
from pathlib import Path

import click

from lobule.cli.base import CommandOutput, LazyGroup, lobule_command, progress
from lobule.cli.cohort import describe, summary
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
    """Parse a size such as 6144x4096 into width and height."""
    match = re.fullmatch(r"(\d+)\s*[x×,]\s*(\d+)", value)
    if not match:
        raise click.BadParameter(f"'{value}' is not a size such as 6144x4096.")
    return int(match[1]), int(match[2])


SEED_OPTION = click.option(
    "--seed", default=0, show_default=True, help="Seed; the same seed gives identical files."
)
SITES_OPTION = click.option(
    "--sites", default=2, show_default=True, help="Number of hospitals; each has its own stain or detector."
)
PATIENTS_OPTION = click.option("--patients", type=int, help="Number of patients; by default one per case.")
UNSEEN_SITE_OPTION = click.option(
    "--unseen-site", is_flag=True, help="Use the last site only in the test split."
)
FORCE_OPTION = click.option("--force", is_flag=True, help="Overwrite an existing cohort.")


@lobule_command("lobule phantom slides OUT --count 2 --size 2048x1536")
@click.argument("out")
@click.option("--count", default=4, show_default=True, help="Number of slides.")
@click.option(
    "--size",
    type=parse_size,
    default="6144x6144",
    show_default=True,
    metavar="WxH",
    help="Size of level 0 in pixels.",
)
@click.option("--mpp", default=0.5, show_default=True, help="µm/px of level 0.")
@click.option("--normal", default=0.5, show_default=True, help="Share of slides without tumour.")
@click.option("--organ", type=click.Choice(["node", "breast"]), default="node", show_default=True)
@click.option("--mimics", default=2, show_default=True, help="Normal regions per slide that resemble tumour.")
@click.option("--layout", type=click.Choice(["folder", "camelyon16"]), default="folder", show_default=True)
@click.option("--style", type=click.Choice(["generic", "svs", "ome"]), default="generic", show_default=True,
              help="How the file states its µm/px.")  # fmt: skip
@SITES_OPTION
@PATIENTS_OPTION
@UNSEEN_SITE_OPTION
@SEED_OPTION
@FORCE_OPTION
def slides(
    out: str, count: int, size: tuple[int, int], mpp: float, normal: float, organ: str, mimics: int,
    layout: str, style: str, sites: int, patients: int | None, unseen_site: bool, seed: int, force: bool,
) -> CommandOutput:  # fmt: skip
    """Generate slides as tiled pyramids, with outlines, class masks and a manifest."""
    check_no_existing_cohort(out, force)
    from lobule.phantoms.cohorts import write_slide_cohort
    from lobule.phantoms.phantom import SlidePhantom

    template = SlidePhantom(0, *size, mpp, mimics=mimics, organ=organ)
    with progress("slides", count, "slides") as advance:
        manifest = write_slide_cohort(
            out, slides=count, normal=normal, patients=patients, sites=sites, seed=seed,
            unseen_site=unseen_site, like=template, layout=layout, style=style,
            progress=lambda done, total: advance(1),
        )  # fmt: skip
    return describe_written_cohort(manifest)


@lobule_command("lobule phantom images OUT --count 4 --size 640x480")
@click.argument("out")
@click.option(
    "--count",
    default=40,
    show_default=True,
    help="Number of images; rounded up to a multiple of four, the number of classes.",
)
@click.option(
    "--size",
    type=parse_size,
    default="2048x1536",
    show_default=True,
    metavar="WxH",
    help="Pixels.",
)
@click.option("--mpp", default=0.42, show_default=True, help="µm/px of the images.")
@click.option("--form", type=click.Choice(["tif", "png"]), default="tif", show_default=True)
@SITES_OPTION
@PATIENTS_OPTION
@UNSEEN_SITE_OPTION
@SEED_OPTION
@FORCE_OPTION
def images(
    out: str, count: int, size: tuple[int, int], mpp: float, form: str, sites: int, patients: int | None,
    unseen_site: bool, seed: int, force: bool,
) -> CommandOutput:  # fmt: skip
    """Generate images of four classes in the layout of BACH, and a manifest.

    The classes are normal, benign, in situ and invasive.
    """
    check_no_existing_cohort(out, force)
    from lobule.phantoms.images import write_images

    per_class = -(-count // 4)
    with progress("images", per_class * 4, "images") as advance:
        manifest = write_images(
            out, per_class, size=size, mpp=mpp, seed=seed, patients=patients, sites=sites,
            unseen_site=unseen_site, form=form, progress=lambda done, total: advance(1),
        )  # fmt: skip
    return describe_written_cohort(manifest)


@lobule_command("lobule phantom exams OUT --count 1 --size 475x650")
@click.argument("out")
@click.option("--count", default=10, show_default=True, help="Number of exams; each has four views.")
@click.option(
    "--size",
    type=parse_size,
    default="1900x2600",
    show_default=True,
    metavar="WxH",
    help="Size of a view in pixels.",
)
@click.option("--form", type=click.Choice(["png", "dicom"]), default="png", show_default=True)
@click.option("--malignant", default=0.4, show_default=True, help="Share of breasts with a malignant lesion.")
@click.option("--benign", default=0.3, show_default=True, help="Share of breasts with a benign lesion.")
@SITES_OPTION
@SEED_OPTION
@FORCE_OPTION
def exams(
    out: str, count: int, size: tuple[int, int], form: str, malignant: float, benign: float, sites: int,
    seed: int, force: bool,
) -> CommandOutput:  # fmt: skip
    """Generate four-view exams with breast labels, lesion outlines and a manifest."""
    check_no_existing_cohort(out, force)
    from lobule.phantoms.exams import write_exams

    with progress("exams", None, "exams"):
        manifest = write_exams(
            out, exams=count, form="dicom" if form == "dicom" else "png", seed=seed, malignant=malignant,
            benign=benign, sites=sites, size=(size[1], size[0]),
        )  # fmt: skip
    return describe_written_cohort(manifest)


def check_no_existing_cohort(out: str, force: bool) -> None:
    """Raise an error if the folder already contains a manifest, unless `force` is set."""
    if (Path(out) / "cohort.csv").exists() and not force:
        raise UsageError(
            "the folder already contains a cohort", subject=out, remedy="Pass --force to overwrite it"
        )


def describe_written_cohort(manifest: Path) -> CommandOutput:
    """Read the manifest that was written, and describe its cohort."""
    from lobule.cohort import read_cohort

    cohort = read_cohort(manifest)
    return CommandOutput(summary(cohort, str(manifest)), describe(cohort, str(manifest)))
