"""Features of Owkin's challenges: one `.npy` file per slide, with three columns before the features.

The columns are the level, x and y of a tile; a row is a tile. The unit of x and y is not documented, so tiles
have no size in level-0 pixels and no map is drawn from such features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedFile
from lobule.features.hdf5 import BLOCK_ROWS, FeatureFile
from lobule.files import not_readable

METADATA_COLUMNS = 3


@dataclass(frozen=True)
class ChallengeFile(FeatureFile):
    """A `.npy` file whose rows are read as they are needed."""

    def l0_coords(self, mpp: float | None = None) -> NDArray[np.int64]:
        """(n, 2): x and y of the tiles as the file states them."""
        return np.asarray(_array(self.path)[:, 1:METADATA_COLUMNS]).astype(np.int64)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, NDArray[Any]]]:
        for start in range(0, self.count, rows):
            row_slice = slice(start, min(start + rows, self.count))
            yield row_slice, self.read(row_slice)

    def read(self, row_slice: slice) -> NDArray[Any]:
        return self._read_finite(_array(self.path)[:, METADATA_COLUMNS:], row_slice).astype(self.dtype)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(_array(self.path)[rows, METADATA_COLUMNS:]).astype(self.dtype)


def read_challenge_file(path: str | Path) -> ChallengeFile:
    """Read the metadata of a `.npy` feature file.

    Raises:
        DamagedFile: The file is damaged, or its first three columns are not level, x and y.
    """
    array = _array(path)
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] <= METADATA_COLUMNS:
        raise DamagedFile(
            "not a feature file of the challenge",
            subject=path,
            expected="a table of numbers: level, x, y, then the features",
            actual=f"{array.dtype} of shape {array.shape}",
        )
    metadata = np.asarray(array[:, :METADATA_COLUMNS])
    if not (np.isfinite(metadata).all() and (metadata >= 0).all() and (metadata == np.floor(metadata)).all()):
        raise DamagedFile(
            "the first three columns are not the level, x and y of the tiles",
            subject=path,
            expected="whole numbers in three columns before the features",
            remedy="Store features without these columns in the layout of TRIDENT or CLAM",
        )
    count, columns = array.shape
    return ChallengeFile(
        Path(path), "challenge", count, columns - METADATA_COLUMNS, "float32", None, None, None, None
    )


def _array(path: str | Path) -> NDArray[Any]:
    """The array of a file, in memory only where it is read. Objects are refused: they would run code."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise not_readable(error, path) from error
    except (OSError, ValueError, EOFError, MemoryError, OverflowError) as error:
        raise DamagedFile(
            "half-written or damaged: NumPy cannot read it",
            subject=path,
            actual=(str(error).splitlines() or [type(error).__name__])[0][:200],
            remedy="Copy or download the file again",
        ) from error
    return array
