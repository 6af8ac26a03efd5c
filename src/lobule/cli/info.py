"""`lobule info`: describe a slide, a mammogram, a results folder or a training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, table
from lobule.cli.options import slide_mpp_option
from lobule.cli.picture_file import check_picture_path

if TYPE_CHECKING:
    from lobule.slides.slide import Slide
    from lobule.training.training_status import TrainingStatus


@lobule_command(
    "lobule info slide.tif",
    "lobule info slide.tif --thumbnail slide.png",
    "lobule info BUNDLE --card",
    "lobule info RESULTS --watch --price-per-hour 2.50",
)
@click.argument("path")
@slide_mpp_option
@click.option("--backend", metavar="NAME", help="Use only this backend.")
@click.option("--thumbnail", metavar="FILE", help="Write a thumbnail of the slide (.png or .jpg).")
@click.option(
    "--image", metavar="NAME", help="With --thumbnail, write this associated image instead (label, macro)."
)
@click.option(
    "--size", type=click.IntRange(1, 30_000), default=1024, help="Longest side of the thumbnail in pixels."
)
@click.option("--tissue/--no-tissue", default=True, help="Measure the tissue area on a thumbnail.")
@click.option("--card", is_flag=True, help="Print the model card of a bundle.")
@click.option(
    "--evaluation", metavar="FILE", help="With --card: evaluation.json with intervals and subgroups."
)
@click.option("--out", metavar="FILE", help="With --card: write the model card to this file.")
@click.option("--watch", "is_watching", is_flag=True, help="Show the state of a running scan until it ends.")
@click.option(
    "--every",
    type=click.FloatRange(0.1),
    default=5.0,
    metavar="S",
    help="With --watch: seconds between looks.",
)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(0),
    metavar="PRICE",
    help="With --watch: price of a machine for an hour, to estimate the cost.",
)
def command(
    path: str,
    slide_mpp: float | None,
    backend: str | None,
    thumbnail: str | None,
    image: str | None,
    size: int,
    tissue: bool,
    card: bool,
    evaluation: str | None,
    out: str | None,
    is_watching: bool,
    every: float,
    price_per_hour: float | None,
) -> CommandOutput:
    """Describe a slide: format, size, levels, µm/px and its source, associated images and tissue area.

    For a results folder, show its results; with --watch, show the state of a scan that may run on other
    machines: cases, rate, time left and failures by cause. For the folder of a training, show its progress.
    With --card, print the model card of a bundle.
    """
    if card:
        return print_card(path, evaluation, out)
    if is_watching:
        from lobule.cli.watch import watch

        return watch(path, every, price_per_hour)
    if Path(path, "scan.json").is_file() or is_results_url(path):
        from lobule.results import describe, local_results

        data, text = describe(local_results(path, only_records=True))
        return CommandOutput(data, text)
    if Path(path).is_dir():
        from lobule.training.training_status import training_folder, training_status

        training = training_folder(path)
        if training is not None:
            return describe_training(training_status(training))
    from lobule.slides.slide import open_slide

    if thumbnail is not None:
        check_picture_path(thumbnail, path)
    with open_slide(path, mpp=slide_mpp, backend=backend) as slide:
        data = slide_summary(slide)
        if tissue and slide.stated_mpp is not None:
            from lobule.cli.tissue import measure

            measured = measure(slide).tissue
            data["tissue"] = {"share": measured.share, "area_mm2": measured.area_mm2}
        if thumbnail is not None:
            data["thumbnail"] = write_thumbnail(slide, thumbnail, size, image)
    return CommandOutput(data, as_text(data))


def is_results_url(path: str) -> bool:
    """Whether a path is the URL of a folder in an object store, and not that of a slide."""
    from lobule.errors import NotReadable
    from lobule.files import is_url
    from lobule.object_folder import ObjectFolder
    from lobule.object_stores import is_object_url
    from lobule.results.folder import SCAN

    if not is_url(path) or not is_object_url(path) or PurePosixPath(urlsplit(path).path).suffix:
        return False
    folder = ObjectFolder(path)
    if not folder.is_read_only:
        return True
    try:  # A web server may have slides whose names have no suffix.
        return folder.read(SCAN) is not None
    except NotReadable:
        return False


def print_card(path: str, evaluation: str | None, out: str | None) -> CommandOutput:
    """Print the model card of a bundle, or write it to a file."""
    from lobule.cli.weights.catalog import licences
    from lobule.files import write_text
    from lobule.reports.model_card import model_card

    text = model_card(path, evaluation, licences=licences())
    if out is not None:
        write_text(out, text)
    return CommandOutput({"bundle": path, "card": text, "file": out}, text if out is None else f"card  {out}")


def describe_training(status: TrainingStatus) -> CommandOutput:
    """Describe a training: finished, running or interrupted, and the last line of every stage's log."""
    stopped = "running" if status.is_running else "interrupted; run the same command again to continue"
    state = "finished: the bundle is complete" if status.is_finished else stopped
    lines = [
        ("training", status.path),
        ("method", status.method or "unknown"),
        ("state", state),
        ("cases", f"{status.train_cases} for training, {status.val_cases} for validation"),
    ]
    total = status.config.get("training", status.config).get("steps")
    for stage in status.stages:
        if stage.step is None:
            lines.append((stage.name, "no log"))
            continue
        of = f" of {total}" if isinstance(total, int) and total >= stage.step else ""
        score = "" if stage.score is None else f", validation {stage.score:.4f}"
        lines.append((stage.name, f"step {stage.step}{of}, loss {stage.loss:.4g}{score}"))
    return CommandOutput({**asdict(status), "kind": "training"}, format_fields(lines))


def slide_summary(slide: Slide) -> dict[str, Any]:
    resolution = slide.stated_mpp
    bounds = slide.bounds
    return {
        "path": slide.path,
        "format": slide.format,
        "width": slide.size.width,
        "height": slide.size.height,
        "mpp_x": resolution.mpp.x if resolution else None,
        "mpp_y": resolution.mpp.y if resolution else None,
        "mpp_source": resolution.source if resolution else None,
        "bounds": [bounds.x, bounds.y, bounds.width, bounds.height],
        "levels": [_level_summary(slide, index) for index in range(len(slide.levels))],
        "associated": {name: size and list(size) for name, size in slide.associated.items()},
        "properties": dict(slide.properties),
    }


def _level_summary(slide: Slide, index: int) -> dict[str, Any]:
    level = slide.levels[index]
    step_x, step_y = map(float, slide.steps(index))
    resolution = slide.stated_mpp
    return {
        "width": level.size.width,
        "height": level.size.height,
        "tile_width": level.tile.width,
        "tile_height": level.tile.height,
        "downsample": step_x,
        "mpp": resolution.mpp.scaled(step_x, step_y).mean if resolution else None,
    }


def write_thumbnail(slide: Slide, target: str, size: int, image: str | None) -> str:
    from PIL import Image

    from lobule.files import write_atomic

    pixels = slide.thumbnail(size) if image is None else slide.read_associated(image)
    picture = Image.fromarray(pixels)
    picture.thumbnail((size, size))
    with write_atomic(target) as temporary:
        picture.save(temporary)
    return target


def as_text(data: dict[str, Any]) -> str:
    lines = [
        ("file", data["path"]),
        ("format", data["format"]),
        ("size", f"{data['width']:,} × {data['height']:,} px"),
        ("resolution", _resolution(data)),
    ]
    if data["bounds"] != [0, 0, data["width"], data["height"]]:
        x, y, width, height = data["bounds"]
        lines.append(("bounds", f"{width:,} × {height:,} px at ({x:,}, {y:,})"))
    if data["associated"]:
        images = data["associated"].items()
        sizes = (f"{name} ({size[0]:,} × {size[1]:,})" if size else name for name, size in images)
        lines.append(("associated", ", ".join(sizes)))
    if "tissue" in data:
        area, share = data["tissue"]["area_mm2"], data["tissue"]["share"]
        lines.append(("tissue", f"{area:.4g} mm² ({share:.1%} of the slide)"))
    if "thumbnail" in data:
        lines.append(("thumbnail", data["thumbnail"]))
    rows = [
        (
            str(index),
            f"{level['width']:,} × {level['height']:,}",
            f"{level['downsample']:.4g}",
            "?" if level["mpp"] is None else f"{level['mpp']:.4g}",
            f"{level['tile_width']} × {level['tile_height']}",
        )
        for index, level in enumerate(data["levels"])
    ]
    return format_fields(lines) + "\n\n" + table(("level", "pixels", "downsample", "µm/px", "tile"), rows)


def _resolution(data: dict[str, Any]) -> str:
    from lobule.units import Mpp

    if data["mpp_x"] is None:
        return "unknown: the file does not state its µm/px (pass it with --slide-mpp)"
    return f"{Mpp(data['mpp_x'], data['mpp_y'])} ({data['mpp_source']})"
