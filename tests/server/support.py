"""Small results folders for the viewer's tests: slides with sharp squares, maps and findings of known values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from starlette.testclient import TestClient

from lobule.cohort import Cohort
from lobule.files import write_json
from lobule.findings import Finding
from lobule.results import Results, open_results
from lobule.results.folder import begin_results
from lobule.results.maps import MapInfo, MapWriter
from lobule.results.result import FORMAT
from lobule.results.writing import map_summaries, write_findings
from lobule.server.app import ServerOptions, create_app
from lobule.server.library import Library, Source
from lobule.stitch import State

STRIDE = 16
PATIENT = "Ada Secret"


def swapped_profile() -> bytes:
    """An ICC profile of a camera whose red is the blue of sRGB, with another tone curve."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(profile[132 + 12 * index : 136 + 12 * index]): 132 + 12 * index for index in range(profile[131])
    }
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    for offset in range(4, 12):  # The table of tags points at each other's values.
        profile[red + offset], profile[blue + offset] = profile[blue + offset], profile[red + offset]
    return bytes(profile)


def squares(width: int, height: int, side: int = 64) -> NDArray[np.uint8]:
    """White with dark blue squares at every fourth position, so that a shift of one pixel shows."""
    pixels = np.full((height, width, 3), 245, np.uint8)
    for top in range(0, height, 4 * side):
        for left in range(0, width, 4 * side):
            pixels[top : top + side, left : left + side] = (40, 20, 120)
    return pixels


def square_scores(rows: int, columns: int, cells: int = 4) -> NDArray[np.float32]:
    """Scores of a map with stride 16 on `squares`: high where a square is."""
    scores = np.full((rows, columns), 0.1, np.float32)
    for top in range(0, rows, 4 * cells):
        for left in range(0, columns, 4 * cells):
            scores[top : top + cells, left : left + cells] = 0.9
    return scores


def write_jpeg_slide(
    path: Path, levels: list[NDArray[np.uint8]], *, rgb: bool = False, profile: bytes | None = None
) -> Path:
    """A pyramid of JPEG tiles with shared tables, as scanners write them."""
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            height, width = level.shape[:2]
            padded = np.pad(level, ((0, -height % 256), (0, -width % 256), (0, 0)), mode="edge")
            streams = [
                _encoded(padded[top : top + 256, left : left + 256], rgb)
                for top in range(0, height, 256)
                for left in range(0, width, 256)
            ]
            writer.write(
                iter([_split(stream)[1] for stream in streams]),
                shape=level.shape,
                dtype=np.uint8,
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb" if rgb else "ycbcr",
                compressionargs={"outcolorspace": "rgb"} if rgb else None,
                subsampling=None if rgb else (1, 1),
                jpegtables=_split(streams[0])[0],
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
                subfiletype=1 if index else 0,
                iccprofile=profile,
                metadata=None,
            )
    return path


def _encoded(pixels: NDArray[np.uint8], rgb: bool) -> bytes:
    stored = "RGB" if rgb else "YCBCR"
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(pixels), level=92, colorspace="RGB", outcolorspace=stored, subsampling="444"
        )
    )


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """Divide a JPEG stream into its tables and the rest, without the segments that define the colours."""
    tables, rest, at = b"", b"", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in (0xDB, 0xC4):
            tables += stream[at:end]
        elif stream[at + 1] not in (0xE0, 0xEE):
            rest += stream[at:end]
        at = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


@dataclass
class Scene:
    """A results folder with its slide, and what was written into it."""

    root: Path
    results: Results
    slide: Path
    pixels: NDArray[np.uint8]
    scores: NDArray[np.float32]
    states: NDArray[np.uint8]
    findings: list[Finding]


def write_case(
    results: Results,
    name: str,
    slide: Path | None,
    scores: NDArray[np.float32],
    states: NDArray[np.uint8],
    findings: list[Finding],
    *,
    finished: bool = True,
    stride: float = STRIDE,
    chunk: tuple[int, int] = (32, 32),
    map_name: str = "tumour",
) -> MapWriter:
    folder = results.case_folder(name)
    rows, columns = states.shape
    info = MapInfo(
        map_name, "slide", ("normal", "tumour"), rows, columns, (stride, stride), (8.0, 8.0), chunk
    )
    writer = MapWriter(folder.map_path(map_name), info)
    both = np.stack([1 - scores, scores])
    both[:, states != State.SCORED] = 0
    for one in info.chunks if finished else ():
        cells = info.chunk_cells(one)
        writer.write_chunk(one, both[:, *cells], states[cells])
    paths = {} if slide is None else {str(slide): "sha256:" + "0" * 64}
    write_json(
        folder.path / "plan.json", {"case": name, "input": paths, "mpp": None, "l0_box": None, "views": {}}
    )
    if finished:
        write_findings(folder.path, findings)
        write_json(folder.path / "result.json", result_of(results, name, findings, paths))
    return writer


def result_of(results: Results, name: str, findings: list[Finding], paths: dict[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "case": name,
        "patient": PATIENT,
        "status": "complete",
        "scores": {"slide": 0.875},
        "maps": map_summaries(results.case_folder(name)),
        "tables": [],
        "findings": {"count": len(findings)},
        "notes": ["A note."],
        "error": None,
        "bundle": results.settings["bundle"],
        "images": {"slide": {"path": next(iter(paths), ""), "size": [1100, 900], "mpp": [0.5, 0.5]}},
        "input": paths,
        "failed": [],
    }


def begin(root: Path, cases: list[str]) -> Results:
    bundle = {"method": "scannet", "fingerprint": "ab" * 32, "classes": ["normal", "tumour"]}
    return begin_results(root / "results", {"bundle": bundle, "options": {"stride": 16}, "cases": cases})


def resampled(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture at another size: each pixel is the one at its centre."""
    rows = ((np.arange(height) + 0.5) * pixels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * pixels.shape[1] / width).astype(int)
    return pixels[rows][:, columns]


def build_scene(root: Path, *, width: int = 1100, height: int = 900) -> Scene:
    """One finished case `one` on a JPEG slide of three levels with uneven ratios, and one not started."""
    pixels = squares(width, height)
    sizes = [(width, height), (width // 2, height // 2), (width // 4 - 1, height // 4 - 1)]
    levels = [resampled(pixels, *size) for size in sizes]
    slide = write_jpeg_slide(root / "slide one.tif", levels)
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    scores = square_scores(rows, columns)
    states = np.full((rows, columns), State.SCORED, np.uint8)
    states[-8:] = State.GLASS
    states[10:12, 20:24] = State.FAILED
    rng = np.random.default_rng(0)
    findings = [
        Finding(int(x), int(y), float(score), label="tumour", size_um=float(100 * score))
        for x, y, score in zip(
            rng.integers(0, width, 40), rng.integers(0, height, 40), rng.random(40), strict=True
        )
    ]
    results = begin(root, ["one", "two"])
    write_case(results, "one", slide, scores, states, findings)
    return Scene(root, open_results(root / "results"), slide, pixels, scores, states, findings)


@contextmanager
def client_of(
    results: Results,
    cohort: Cohort | None = None,
    options: ServerOptions | None = None,
    slides: Path | None = None,
) -> Iterator[TestClient]:
    library = Library([Source("results", results)], cohort, slides)
    with TestClient(create_app(library, options), base_url="http://localhost") as client:
        yield client


def case_ids(client: TestClient) -> dict[str, str]:
    return {row["name"]: row["id"] for row in client.get("/api/cases").json()}
