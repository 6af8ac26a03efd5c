"""Small slides for tests: a generated picture, its pyramid, and files of each format that contain it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)
from scipy.ndimage import gaussian_filter

from lobule.slides import RGB


def picture(width: int, height: int, seed: int = 0) -> RGB:
    """Pink blobs of all sizes on near-white, with noise, so that no two locations look alike."""
    rng = np.random.default_rng(seed)
    field = sum(
        gaussian_filter(rng.standard_normal((height, width)), sigma) * sigma for sigma in (1.5, 5.0, 15.0)
    )
    amount = np.clip(field, 0, 2.5)[..., None]
    colours = np.array([245, 240, 244]) - amount * np.array([50, 85, 45])
    return np.clip(colours + rng.normal(0, 3, (height, width, 1)), 0, 255).astype(np.uint8)


def halved(pixels: RGB) -> RGB:
    """The next level: means of 2 × 2 px. An odd last row or column is dropped, as scanners do."""
    height, width = (length // 2 * 2 for length in pixels.shape[:2])
    quads = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).astype(np.uint16)
    return ((quads.sum(axis=(1, 3)) + 2) // 4).astype(np.uint8)


def pyramid(pixels: RGB, levels: int, stride: int = 1) -> list[RGB]:
    """The picture and its halvings. With `stride` 2 only every second one, so that levels differ by 4."""
    out = [pixels]
    for _ in range((levels - 1) * stride):
        out.append(halved(out[-1]))
    return out[::stride]


def write_tiff(
    path: Path, levels: Sequence[RGB], *, tile: int | None = 64, mpp: float | None = None, **options: Any
) -> Path:
    """A pyramidal TIFF with one page per level, tiled or in strips."""
    layout: dict[str, Any] = {"tile": (tile, tile)} if tile else {"rowsperstrip": 32}
    if mpp is not None:
        layout |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as out:
        for index, pixels in enumerate(levels):
            out.write(
                pixels, photometric="rgb", metadata=None, subfiletype=1 if index else 0, **layout, **options
            )
    return path


def tile_frames(pixels: RGB, tile: int) -> list[RGB]:
    """Tiles row by row. The last ones are padded with their edge pixels."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    return [
        padded[y : y + tile, x : x + tile]
        for y in range(0, padded.shape[0], tile)
        for x in range(0, padded.shape[1], tile)
    ]


def jpeg_frame(pixels: RGB) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=92, subsampling="444"))


def rgb_jpeg_frame(pixels: RGB) -> bytes:
    """A JPEG whose samples are red, green and blue, which nothing in the stream states."""
    stream = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(pixels), level=92, subsampling="444", colorspace="RGB", outcolorspace="RGB"
    )
    at = stream.find(b"\xff\xee")
    return bytes(stream if at < 0 else stream[:at] + stream[at + 16 :])


def jpeg2000_frame(pixels: RGB) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k"))


CODINGS: dict[str, tuple[str, str, Callable[[RGB], bytes]]] = {
    "jpeg": (JPEGBaseline8Bit, "YBR_FULL_422", jpeg_frame),
    "rgb jpeg": (JPEGBaseline8Bit, "RGB", rgb_jpeg_frame),
    "jpeg2000": (JPEG2000Lossless, "YBR_RCT", jpeg2000_frame),
    "native": (ExplicitVRLittleEndian, "RGB", np.ndarray.tobytes),
}


def write_dicom(
    folder: Path,
    levels: Sequence[RGB],
    *,
    tile: int = 64,
    mpp: tuple[float, float] | None = (0.5, 0.5),
    coding: str = "jpeg",
    label: RGB | None = None,
    sparse: set[tuple[int, int]] | None = None,
    series: str = "slide",
) -> list[Path]:
    """A slide as a DICOM series with one file per level. `sparse` lists tiles of level 0 not to store."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, pixels in enumerate(levels):
        scale = levels[0].shape[1] / pixels.shape[1]
        spacing = None if mpp is None else (mpp[0] * scale / 1000, mpp[1] * scale / 1000)
        data = _wsi_dataset(pixels, tile, spacing, coding, "VOLUME", series, sparse if index == 0 else None)
        paths.append(folder / f"{series}_{index}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    if label is not None:
        data = _wsi_dataset(label, max(label.shape[:2]), None, coding, "LABEL", series, None)
        paths.append(folder / f"{series}_label.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def _wsi_dataset(
    pixels: RGB,
    tile: int,
    spacing: tuple[float, float] | None,
    coding: str,
    flavour: str,
    series: str,
    sparse: set[tuple[int, int]] | None,
) -> Dataset:
    syntax, photometric, encode = CODINGS[coding]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    name = f"{series}-{flavour}-{pixels.shape}"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name])
    data.ImageType = ["DERIVED", "PRIMARY", flavour, "NONE"]
    data.Modality, data.Manufacturer = "SM", "Lobule tests"
    data.StudyInstanceUID = generate_uid(entropy_srcs=[series, "study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[series, "series"])
    data.FrameOfReferenceUID = generate_uid(entropy_srcs=[series, "frame"])
    data.Rows = data.Columns = tile
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, photometric, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.NumberOfOpticalPaths = data.TotalPixelMatrixFocalPlanes = 1
    path = Dataset()
    path.OpticalPathIdentifier = "0"
    data.OpticalPathSequence = [path]
    shared = Dataset()
    if spacing is not None:
        measures = Dataset()
        measures.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]  # rows first
        measures.SliceThickness = "0"
        shared.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = tile_frames(pixels, tile)
    columns = -(-pixels.shape[1] // tile)
    stored = [i for i in range(len(frames)) if sparse is None or (i % columns, i // columns) not in sparse]
    data.DimensionOrganizationType = "TILED_FULL" if sparse is None else "TILED_SPARSE"
    if sparse is not None:
        data.PerFrameFunctionalGroupsSequence = [
            _frame_position(i % columns * tile, i // columns * tile) for i in stored
        ]
    encoded = [encode(frames[i]) for i in stored]
    data.NumberOfFrames = len(encoded)
    pixel_data = b"".join(encoded) if coding == "native" else encapsulate(encoded)
    data.add_new("PixelData", "OB", pixel_data)
    return data


def _frame_position(x: int, y: int) -> Dataset:
    position = Dataset()
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = x + 1, y + 1
    position.XOffsetInSlideCoordinateSystem = position.YOffsetInSlideCoordinateSystem = "0"
    position.ZOffsetInSlideCoordinateSystem = "0"
    frame = Dataset()
    frame.PlanePositionSlideSequence = [position]
    return frame
