"""Single images of a DICOMweb server: their identity, their header and their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lobule.dicomweb import parse_url
from lobule.dicomweb.server import server_of
from lobule.errors import NotReadable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
IDENTIFYING = (
    "SOPInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames", "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns", "ImageType", "InstanceCreationDate", "InstanceCreationTime", "ContentDate",
    "ContentTime",
)  # fmt: skip


def identity(url: str) -> str:
    """Return a hash of the UIDs, sizes and dates of the images of a series or instance.

    The pixels are not read: other pixels must have another UID.
    """
    address = parse_url(url)
    datasets = server_of(address.root).metadata(address.path)
    lines = sorted(repr([str(dataset.get(name, "")) for name in IDENTIFYING]) for dataset in datasets)
    return f"dicomweb-sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def read_instance(url: str, *, pixels: bool) -> Dataset:
    """Return the header of an instance, and its first frame if `pixels` is set.

    Raises:
        NotReadable: The instance cannot be read.
    """
    address = parse_url(url)
    server = server_of(address.root)
    datasets = server.metadata(address.path)
    if address.instance is None or len(datasets) != 1:
        raise NotReadable(
            "this is not the URL of one image", subject=url, expected=".../series/UID/instances/UID"
        )
    if pixels:
        _add_pixels(datasets[0], *server.frames(address.path, 1, 1))
    return datasets[0]


def _add_pixels(dataset: Dataset, syntax: str, frames: Sequence[bytes]) -> None:
    from pydicom.encaps import encapsulate

    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax in UNCOMPRESSED:
        content = frames[0]
        dataset.PixelData = content + b"\0" * (len(content) % 2)
    else:
        dataset.PixelData = encapsulate(list(frames))
    dataset["PixelData"].VR = (
        "OB" if syntax not in UNCOMPRESSED or dataset.get("BitsAllocated") == 8 else "OW"
    )
