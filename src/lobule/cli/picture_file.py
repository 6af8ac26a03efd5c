"""Check the path of a picture before the picture is computed."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from lobule.errors import ConfigError
from lobule.files import is_url

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def check_picture_path(target: str, slide_path: str) -> None:
    """Check that a picture can be written to a path.

    Raises:
        ConfigError: The type of the file name is unknown, or the picture would overwrite the slide.
    """
    suffix = PurePosixPath(target).suffix
    if suffix.lower() not in PICTURE_SUFFIXES:
        raise ConfigError(
            f"cannot write a picture of type '{suffix}'",
            subject=target,
            expected=f"a file name that ends in {', '.join(PICTURE_SUFFIXES)}",
        )
    if is_url(target) or is_url(slide_path):
        is_slide = target == slide_path
    else:
        slide, picture = Path(slide_path), Path(target)
        inside = picture.exists() and picture.resolve().is_relative_to(slide.resolve())
        is_slide = inside or (picture.exists() and slide.exists() and picture.samefile(slide))
    if is_slide:
        raise ConfigError(
            "writing the picture there would overwrite the slide",
            subject=target,
            remedy="Choose another file name",
        )
