"""`lobule tissue`: detect the tissue of a slide, measure its area and draw a preview."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.options import slide_mpp_option
from lobule.cli.picture_file import check_picture_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lobule.slides.slide import Slide
    from lobule.tissue import TissueMask


@lobule_command("lobule tissue slide.tif --preview tissue.png --mask mask.png")
@click.argument("path")
@click.option("--preview", metavar="FILE", help="Write a picture of the slide with the tissue outlined.")
@click.option("--mask", metavar="FILE", help="Write the mask, with one pixel per cell and 255 for tissue.")
@slide_mpp_option
def command(path: str, preview: str | None, mask: str | None, slide_mpp: float | None) -> CommandOutput:
    """Detect the tissue of a slide, print its area and the parameters, and write a preview and the mask."""
    from PIL import Image

    from lobule.files import write_atomic
    from lobule.slides.slide import open_slide

    for target in (preview, mask):
        if target is not None:
            check_picture_path(target, path)
    with open_slide(path, mpp=slide_mpp) as slide:
        measured = measure(slide)
        if preview is not None:
            save_preview(slide, measured, preview)
    if mask is not None:
        with write_atomic(mask) as temporary:
            Image.fromarray(measured.mask.astype("uint8") * 255).save(temporary)
    rows, columns = measured.mask.shape
    data: dict[str, Any] = {
        "path": path,
        **measured.tissue.to_dict(),
        "mask": {"width": columns, "height": rows, "l0_step": list(measured.l0_step), "file": mask},
        "preview": preview,
    }
    return CommandOutput(data, as_text(data))


@dataclass(frozen=True)
class MeasuredTissue:
    """The tissue of a slide."""

    tissue: TissueMask
    l0_step: tuple[float, float]
    """Width and height of a mask cell in level-0 pixels."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Tissue cells, as an array of rows and columns."""
        return self.tissue.mask


def measure(slide: Slide) -> MeasuredTissue:
    """Detect the tissue of a slide in the same way as a scan."""
    from lobule.slides.overview import read_overview
    from lobule.tissue import TissueConfig, find_tissue

    config = TissueConfig()
    slide_mpp = slide.mpp  # raises an error for a slide without µm/px before any pixels are read
    overview = read_overview(slide, config.mpp)
    lattice = overview.lattice
    tissue = find_tissue(overview.pixels, lattice.mpp or slide_mpp, config)
    return MeasuredTissue(tissue, (float(lattice.step_x), float(lattice.step_y)))


def save_preview(slide: Slide, measured: MeasuredTissue, target: str) -> None:
    from lobule.cli import picture

    groups = [
        picture.Outlines(picture.trace_outlines(measured.mask, *measured.l0_step), picture.TISSUE, "tissue")
    ]
    if measured.tissue.pen.any():
        pen = picture.trace_outlines(measured.tissue.pen, *measured.l0_step)
        groups.append(picture.Outlines(pen, picture.EXCLUDED, "pen marks, excluded"))
    name = slide.path.rpartition("/")[2]
    picture.save(picture.draw_slide(slide, name, "detected tissue", groups), target)


def as_text(data: dict[str, Any]) -> str:
    size = data["mask"]
    step = " × ".join(f"{value:g}" for value in size["l0_step"])
    lines = [("area", f"{data['area_mm2']:.4g} mm²"), ("share", f"{data['share']:.1%} of the slide")]
    if data["pen_mm2"]:
        lines.append(("pen", f"{data['pen_mm2']:.4g} mm² excluded"))
    lines += [
        ("mask", f"{size['width']} × {size['height']} cells of {step} level-0 px"),
        ("parameters", "\n".join(f"{name} {value}" for name, value in data["config"].items())),
    ]
    lines += [
        (name, where) for name, where in (("preview", data["preview"]), ("mask file", size["file"])) if where
    ]
    return format_fields(lines)
