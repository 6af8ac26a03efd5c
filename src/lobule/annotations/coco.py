"""COCO JSON: the polygons of an object detection data set, for one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from lobule.annotations.outline import Annotation, Collector, Kind, kind_of_group


def is_coco(document: Any) -> bool:
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def read_coco(
    document: Mapping[str, Any],
    source: str,
    groups: Mapping[str, Kind] | None = None,
    image: str | None = None,
) -> Annotation:
    """Read the polygons of one image.

    Args:
        document: The parsed file.
        source: Its path, for messages.
        groups: The kinds of additional categories.
        image: Name of the image, with or without its suffix; needed if the file has several.

    Raises:
        AnnotationError: The file is damaged, or it is not clear which image is meant.
    """
    collector = Collector(source)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in document.get("categories", [])}
        images = {entry["id"]: str(entry.get("file_name", "")) for entry in document["images"]}
        chosen = _image(images, image, collector)
        for number, entry in enumerate(document["annotations"], 1):
            if entry.get("image_id") == chosen:
                name = names.get(entry.get("category_id"), "")
                _add(entry, f"annotation {number} ('{name}')", name, kind_of_group(name, groups), collector)
    except (KeyError, TypeError, AttributeError) as error:
        raise collector.error("the COCO file is damaged", actual=f"{type(error).__name__}: {error}") from None
    return collector.annotation()


def _image(images: Mapping[Any, str], name: str | None, collector: Collector) -> Any:
    """Return the id of the image with a name, or of the only image."""
    if len(images) == 1:
        return next(iter(images))
    matching = [number for number, file in images.items() if name in (file, PurePosixPath(file).stem)]
    if len(matching) == 1:
        return matching[0]
    raise collector.error(
        f"the file has {len(images)} images", expected="one image, or one named like the slide", actual=name
    )


def _add(entry: Mapping[str, Any], location: str, name: str, kind: Kind, collector: Collector) -> None:
    shape = entry.get("segmentation")
    if isinstance(shape, Mapping):
        collector.warn(f"{location} is a mask (RLE), which is not supported, and is left out")
        return
    if not shape:
        x, y, width, height = entry["bbox"]
        shape = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    for ring in shape:
        points = np.array(ring, np.float64)
        if points.ndim != 1 or len(points) % 2:
            raise collector.error(f"{location} has points that are not pairs of numbers")
        collector.add([points.reshape(-1, 2)], kind, "", name, location)
