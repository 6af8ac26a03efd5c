"""Numbers from HDF5 files of other programs. Nothing outside the file is read.

An HDF5 file can refer to other files by links, by external storage and by virtual datasets. All of these are
refused, so that a file from an untrusted source cannot pass the content of another file off as its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedFile
from lobule.files import not_readable, write_atomic

Group = h5py.Group
LARGEST_NAMES = 1 << 20
"""Largest size in bytes of an attribute that lists names."""


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever HDF5 raises becomes `DamagedFile`."""
    if not Path(path).is_file():
        raise not_readable(FileNotFoundError(), path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise DamagedFile(
            "HDF5 cannot read the file",
            subject=path,
            actual=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            remedy="Copy or download the file again",
        ) from error


def item_at(group: h5py.Group, name: str, path: str | Path) -> Any:
    """Return the group or dataset at a name with slashes, or None. A link is refused."""
    item: Any = group
    for step in filter(None, name.split("/")):
        if not isinstance(item, h5py.Group) or step not in item.keys():  # noqa: SIM118 - follows no link
            return None
        if not isinstance(item.get(step, getlink=True), h5py.HardLink):
            raise DamagedFile(
                f"'{name}' is a link",
                subject=path,
                expected="numbers in the file itself",
                remedy="Do not use it",
            )
        item = item[step]
    return item


def numbers_at(
    group: h5py.Group,
    name: str,
    path: str | Path,
    *,
    shape: tuple[int, ...] | None = None,
    most: int = 1 << 30,
) -> NDArray[Any]:
    """Read the dataset at a name.

    Args:
        group: The group that contains it.
        name: Its name, with slashes if it is in a group of this group.
        path: The file, for messages.
        shape: The shape that it must have, if that is known.
        most: Largest number of values; a larger dataset is refused before anything is read.

    Raises:
        DamagedFile: It is missing, of another shape, too large, or not made of numbers stored in this file.
    """
    item = item_at(group, name, path)
    if not isinstance(item, h5py.Dataset):
        raise DamagedFile("a dataset is missing", subject=path, expected=f"'{name}' in {group.name}")
    if item.external or item.is_virtual or item.dtype.kind not in "fiu":
        raise DamagedFile(
            f"'{name}' does not contain numbers of this file",
            subject=path,
            actual="storage in other files" if item.dtype.kind in "fiu" else f"values of type {item.dtype}",
        )
    if (shape is not None and item.shape != shape) or item.size is None or item.size > most:
        raise DamagedFile(
            f"'{name}' has an unexpected shape",
            subject=path,
            expected=str(shape) if shape is not None else f"at most {most} values",
            actual=str(item.shape),
        )
    return np.asarray(item[()])


def names_in(group: h5py.Group, attribute: str, path: str | Path) -> list[str]:
    """The names that an attribute lists; an empty list without the attribute."""
    if attribute not in group.attrs:
        return []
    stored = group.attrs.get_id(attribute)
    if stored.get_storage_size() > LARGEST_NAMES or stored.dtype.kind not in "SO":
        raise DamagedFile(f"the attribute '{attribute}' is not a list of names", subject=path)
    names = np.atleast_1d(group.attrs[attribute]).tolist()
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def write_dataset(path: str | Path, name: str, numbers: NDArray[Any], compression: str | None = None) -> None:
    """Write a file with one dataset; the file appears under its name when it is complete."""
    with write_atomic(path) as temporary_path, h5py.File(temporary_path, "w") as file:
        file.create_dataset(name, data=numbers, compression=compression)
