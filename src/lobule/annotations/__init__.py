"""Annotations: outlines of tumour and of excluded areas, from all common formats, as polygons or masks.

annotation = read_annotation("Tumor_003.xml")
mask = rasterise(annotation, 32, Box(0, 0, 3056, 6912))
write_annotation("tumor_003.geojson", annotation)
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lobule.annotations.asap import read_asap, write_asap
from lobule.annotations.coco import is_coco, read_coco
from lobule.annotations.dicom import is_dicom, read_dicom_annotation
from lobule.annotations.dsa import is_dsa, read_dsa
from lobule.annotations.geojson import read_geojson, write_geojson
from lobule.annotations.masks import ClassMask, classes_of_tumour_value, mask_annotation, read_mask
from lobule.annotations.ncrf import read_ncrf, write_ncrf
from lobule.annotations.outline import Annotation, Kind, Polygon
from lobule.annotations.raster import fill, in_tumour, inside, rasterise
from lobule.errors import AnnotationError, ConfigError, TooLarge
from lobule.files import open_url, read_at_most, write_bytes
from lobule.geometry import Size

__all__ = [
    "Annotation",
    "ClassMask",
    "Kind",
    "Polygon",
    "classes_of_tumour_value",
    "fill",
    "in_tumour",
    "inside",
    "rasterise",
    "read_annotation",
    "read_class_mask",
    "write_annotation",
]

MAX_BYTES = 512 * 1024 * 1024
"""Largest size of an unpacked annotation file; the largest of Camelyon16 have about 4 MB."""

IMAGE_MAGIC = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")

WRITERS: dict[str, Callable[[Annotation], bytes]] = {
    ".xml": write_asap, ".geojson": write_geojson, ".json": write_ncrf,
}  # fmt: skip
"""Writers by the suffix of the file."""


def read_annotation(
    path: str | Path,
    *,
    groups: Mapping[str, Kind] | None = None,
    classes: Mapping[int, Kind] | None = None,
    l0_size: Size | None = None,
    l0_offset: tuple[float, float] = (0, 0),
    l0_mpp: tuple[float, float] | None = None,
    image: str | None = None,
) -> Annotation:
    """Read ASAP XML, QuPath GeoJSON (plain or gzipped), NCRF, COCO or DSA JSON, DICOM, or a class mask.

    The format is recognised by the content of the file.

    Args:
        path: The annotation file.
        groups: The kinds of additional groups or classifications.
        classes: The kinds of the values of a mask.
        l0_size: Size of level 0 of the slide, which determines the scale of a mask.
        l0_offset: Added to every point. QuPath crops a slide to its OpenSlide bounds, so its GeoJSON needs
            (bounds-x, bounds-y).
        l0_mpp: µm/px of the slide in x and y, which DICOM segmentations need.
        image: Name of the image to read from a COCO file with several.

    Returns:
        The polygons in level-0 pixels, with warnings about unusual content.

    Raises:
        AnnotationError: The file is damaged or is not an annotation.
    """
    source = str(path)
    data = _read_bytes(path)
    if data[:4] in IMAGE_MAGIC or data[:2] in IMAGE_MAGIC:
        mask = read_mask(data, source, l0_size)
        annotation = mask_annotation(mask, source, classes, scale_known=l0_size is not None)
    elif is_dicom(data):
        annotation = read_dicom_annotation(data, source, groups, l0_mpp)
    elif data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        annotation = read_asap(data, source, groups)
    else:
        annotation = _of_json(_parse_json(data, source), source, groups, image)
    return annotation.moved(*l0_offset) if any(l0_offset) else annotation


def read_class_mask(path: str | Path, l0_size: Size | None = None) -> ClassMask:
    """The unchanged values of a class-mask raster."""
    return read_mask(_read_bytes(path), str(path), l0_size)


def write_annotation(
    path: str | Path, annotation: Annotation, *, l0_offset: tuple[float, float] = (0, 0)
) -> None:
    """Write an annotation as ASAP XML (`.xml`), GeoJSON (`.geojson`) or NCRF JSON (`.json`).

    Args:
        path: The file to write. It is gzipped if its name ends in `.gz`.
        annotation: The annotation.
        l0_offset: Subtracted from every point (see `read_annotation`).

    Raises:
        ConfigError: The suffix is not that of a format.
    """
    target = Path(path)
    plain = target.with_suffix("") if target.suffix == ".gz" else target
    writer = WRITERS.get(plain.suffix.lower())
    if writer is None:
        expected = f"one of {', '.join(WRITERS)}"
        raise ConfigError("cannot tell which format to write", subject=path, expected=expected)
    data = writer(annotation.moved(-l0_offset[0], -l0_offset[1]) if any(l0_offset) else annotation)
    write_bytes(path, gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)


def _read_bytes(path: str | Path) -> bytes:
    with open_url(path) as file:
        data = read_at_most(file, MAX_BYTES + 1)
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = read_at_most(packed, MAX_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise AnnotationError("the gzip data is damaged", subject=path, actual=str(error)) from None
    if len(data) > MAX_BYTES:
        expected = f"at most {MAX_BYTES} bytes"
        raise TooLarge("the file is too large for an annotation", subject=path, expected=expected)
    if not data.strip():
        raise AnnotationError("the file is empty", subject=path, expected="an annotation")
    return data


def _parse_json(data: bytes, source: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            "the file is not an annotation that Lobule can read",
            subject=source,
            expected="ASAP XML, JSON of QuPath, NCRF, COCO or DSA, DICOM, or a PNG or TIFF of classes",
            actual=str(error),
        ) from None


def _of_json(document: Any, source: str, groups: Mapping[str, Kind] | None, image: str | None) -> Annotation:
    if is_coco(document):
        return read_coco(document, source, groups, image)
    if is_dsa(document):
        return read_dsa(document, source, groups)
    if isinstance(document, dict) and ("positive" in document or "negative" in document):
        return read_ncrf(document, source)
    if isinstance(document, list) or (isinstance(document, dict) and "type" in document):
        return read_geojson(document, source, groups)
    raise AnnotationError(
        "the file is JSON, but not an annotation",
        subject=source,
        expected="'positive' and 'negative' (NCRF), a FeatureCollection (GeoJSON), COCO or DSA",
    )
