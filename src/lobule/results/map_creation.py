"""Creates the folders of maps."""

from __future__ import annotations

from pathlib import Path

from lobule.raw_files import make_new_folders
from lobule.results.map_files import LEVEL, ArrayFiles, group_description, write_description
from lobule.results.map_info import MapInfo
from lobule.stitch import State

INNER = 512
"""Largest number of cells per side of the blocks that can be read separately from a large chunk. A chunk with
no more cells than such a block is not divided: it is small to read, and needs no shards."""

MAKING = ".making"
"""Suffix of the folder of a map that is being created or deleted."""


def create_map(path: Path, info: MapInfo) -> None:
    """Create a map under another name and rename it, so that an existing map is complete."""
    aside = path.with_name(path.name + MAKING)
    if aside.exists():
        import shutil

        shutil.rmtree(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_sharded(info):
        _create_sharded(aside, info)
    else:
        arrays = plain_arrays(aside, info)
        make_new_folders([str(aside), *(str(array.path) for array in arrays)])
        for array in arrays:
            write_description(array.path, array.description())
        write_description(aside, group_description(info.to_attributes()))
    aside.rename(path)


def _create_sharded(path: Path, info: MapInfo) -> None:
    import zarr
    from zarr.codecs import BloscCodec
    from zarr.storage import LocalStore

    group = zarr.create_group(LocalStore(path), attributes=info.to_attributes())
    inner = _inner(info)
    for array in plain_arrays(path, info):
        group.create_array(
            array.path.name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(*array.chunk[:-2], *inner),
            shards=array.chunk,
            compressors=BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle"),
            fill_value=array.fill,
            config={"write_empty_chunks": True},
            dimension_names=array.dimensions,
        )


def plain_arrays(path: Path, info: MapInfo) -> tuple[ArrayFiles, ArrayFiles]:
    """Return the arrays of scores and states of a map with undivided chunks."""
    shape, classes = (info.rows, info.columns), len(info.classes)
    score_shape, score_chunk = (classes, *shape), (classes, *info.chunk)
    pending = int(State.PENDING)
    return (
        ArrayFiles(path / "score", score_shape, score_chunk, "float32", ("class", "y", "x"), 0.0),
        ArrayFiles(path / "state", shape, info.chunk, "uint8", ("y", "x"), pending),
    )


def _inner(info: MapInfo) -> tuple[int, int]:
    """Return the rows and columns of the blocks that can be read separately from a chunk."""
    return _divisor(info.chunk[0]), _divisor(info.chunk[1])


def is_sharded(info: MapInfo) -> bool:
    rows, columns = info.chunk
    return rows * columns > INNER * INNER and _inner(info) != info.chunk


def _divisor(length: int) -> int:
    """Return the largest divisor of a chunk's side that is at most `INNER`.

    If the divisor is very small, as for a prime number, the side itself is returned.
    """
    divisor = next(divisor for divisor in range(min(length, INNER), 0, -1) if length % divisor == 0)
    return divisor if divisor >= INNER // 8 else length
