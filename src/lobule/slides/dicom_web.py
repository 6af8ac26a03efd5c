"""Whole-slide images on DICOMweb servers: headers are read once, and frames when they are needed.

Frames are decoded by the code for DICOM files. Those that a pass will read are fetched ahead of their use,
several with one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsidicom.cache import DecodedFrameCache, EncodedFrameCache
from wsidicom.codec import Codec
from wsidicom.errors import WsiDicomNotFoundError
from wsidicom.instance import WsiDataset, WsiInstance
from wsidicom.instance.wsidicom_image_data import WsiDicomImageData

from lobule.dicomweb import is_dicomweb_url, parse_url
from lobule.dicomweb.server import Server, server_of
from lobule.errors import UnknownFormat
from lobule.geometry import Box, Size, tiles_over
from lobule.slides.dicom import DicomBackend
from lobule.slides.dicom_access import FrameReader, SeriesAccess
from lobule.slides.dicom_series import WHOLE_SLIDE, Header, check_levels, header_of, no_warnings
from lobule.slides.read_ahead import AHEAD_BYTES, USED_BYTES, Range, ReadAhead

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FRAMES_PER_REQUEST = 16


def open_backend(path: str) -> DicomWebBackend | None:
    """The slide of a series on a DICOMweb server, or None if the path is not such a URL."""
    if not is_dicomweb_url(path):
        return None
    address = parse_url(path)
    server = server_of(address.root)
    datasets = server.metadata(address.series_path)
    slide_datasets = [dataset for dataset in datasets if dataset.get("SOPClassUID") == WHOLE_SLIDE]
    if not slide_datasets:
        raise UnknownFormat(
            "the series contains no whole-slide image",
            subject=path,
            expected="VL Whole Slide Microscopy Image Storage",
            actual=", ".join(sorted({str(dataset.get("SOPClassUID")) for dataset in datasets}))
            or "no images",
        )
    images = [
        _Instance(dataset, _Frames(server, f"{address.series_path}/instances/{dataset.SOPInstanceUID}"))
        for dataset in slide_datasets
    ]
    with no_warnings():
        headers = [
            header_of(Path(str(image.dataset.SOPInstanceUID)), image.dataset, image.frames.syntax)
            for image in images
        ]
    check_levels(path, headers)
    return DicomWebBackend(path, headers, images)


class DicomWebBackend(DicomBackend):
    """One slide of a series on a DICOMweb server."""

    def __init__(self, path: str, headers: list[Header], images: Sequence[_Instance]) -> None:
        access = SeriesAccess(
            open=partial(_Source, path, images),
            names_of=lambda instance: {str(instance.dataset.uids.instance)},
            frames_of=lambda instance: instance.image_data.frames,
        )
        super().__init__(path, headers, access)

    def plan(self, level: int, boxes: Sequence[Box], reduce: int = 1) -> None:
        """Announce the boxes of a level that will be read, in this order: their frames are fetched ahead."""
        plane = self.plane(level)
        tile = Size(plane.tile.width // reduce, plane.tile.height // reduce)
        indices: dict[int, None] = {}
        for _, row_of_boxes in groupby(boxes, key=lambda box: box.y):
            tiles = {tile_index for box in row_of_boxes for tile_index in tiles_over(box, tile)}
            indices |= dict.fromkeys(sorted(plane.frame_index(column, row) for column, row in tiles))
        indices.pop(-1, None)
        frames = plane.frames
        assert isinstance(frames, _Frames)
        frames.plan(list(indices), plane.tile)


class _Frames(FrameReader):
    """Reads the frames of one instance."""

    def __init__(self, server: Server, instance_path: str) -> None:
        self._server, self._path = server, instance_path
        self._syntax, first = server.frames(instance_path, 1, 1)
        self._first_frame = first[0]
        self._planned: ReadAhead[list[bytes]] | None = None

    @property
    def syntax(self) -> str:
        """The transfer syntax in which the server sends the frames."""
        return self._syntax

    def plan(self, indices: Sequence[int], tile: Size) -> None:
        """Announce the frames that will be read, in this order."""
        self.close()
        ranges: list[Range] = [(index, 1) for index in indices if index]
        # An uncompressed frame is larger than a compressed one, so that the memory is bounded.
        most, used = (max(FRAMES_PER_REQUEST, size // (3 * tile.area)) for size in (AHEAD_BYTES, USED_BYTES))
        self._planned = ReadAhead(self._fetch, ranges, most, used, FRAMES_PER_REQUEST, 0)

    def read(self, index: int) -> bytes:
        if index == 0:
            return self._first_frame
        planned = self._planned
        frames = None if planned is None else planned.take(index, 1)
        return (frames or self._fetch(index, index + 1))[0]

    def close(self) -> None:
        if self._planned is not None:
            self._planned.close()

    def _fetch(self, start: int, end: int) -> list[bytes]:
        syntax, frames = self._server.frames(self._path, start + 1, end)
        if syntax != self._syntax:
            raise UnknownFormat(
                "the server sends frames of one image in several transfer syntaxes",
                subject=f"{self._server.root}{self._path}",
                expected=self._syntax,
                actual=syntax,
            )
        return frames


@dataclass(frozen=True)
class _Instance:
    """The header of one instance, and the reader of its frames."""

    dataset: Dataset
    frames: _Frames


class _Image(WsiDicomImageData):  # type: ignore[misc]
    """The pixels of one instance: wsidicom finds the frame of a tile, and `frames` reads it."""

    def __init__(self, dataset: Any, frames: _Frames) -> None:
        from pydicom.uid import UID

        self.frames = frames
        self._syntax = UID(frames.syntax)
        codec = Codec.create(
            self._syntax,
            dataset.samples_per_pixel,
            dataset.bits,
            dataset.tile_size,
            dataset.photometric_interpretation,
        )
        super().__init__([dataset], codec, DecodedFrameCache(0), EncodedFrameCache(0))

    @property
    def transfer_syntax(self) -> Any:
        return self._syntax

    def _get_tile_frame(self, frame_index: int) -> bytes:
        return self.frames.read(frame_index)


class _Source:
    """The instances of a series, as wsidicom's sources have them."""

    def __init__(self, path: str, images: Sequence[_Instance]) -> None:
        self._instances = []
        for image in images:
            if WsiDataset.is_supported(image.dataset):
                dataset = WsiDataset(image.dataset)
                self._instances.append(WsiInstance(dataset, _Image(dataset, image.frames)))
        if not self.level_instances:
            raise WsiDicomNotFoundError("level", path)

    def _of_kind(self, kind: str) -> list[Any]:
        return [instance for instance in self._instances if instance.image_type.name == kind]

    @property
    def level_instances(self) -> list[Any]:
        return self._of_kind("VOLUME")

    @property
    def label_instances(self) -> list[Any]:
        return self._of_kind("LABEL")

    @property
    def overview_instances(self) -> list[Any]:
        return self._of_kind("OVERVIEW")

    @property
    def thumbnail_instances(self) -> list[Any]:
        return self._of_kind("THUMBNAIL")

    def close(self) -> None:
        for instance in self._instances:
            instance.image_data.frames.close()
