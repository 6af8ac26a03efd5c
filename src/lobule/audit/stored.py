"""Small pictures of cases on disk, so that an interrupted `lobule check` continues where it stopped."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from lobule.audit.picture import LONGEST, Plane
from lobule.cohort import Case
from lobule.files import case_folder_name, is_url, make_folder, write_bytes

FORMAT = 1
"""Number of the layout of stored pictures. A change of how pictures are made needs a new number."""
FOLDER = "pictures"

Pictures = dict[str, Plane]
"""Shrunk grey pixels by the name of the image."""


class StoredPictures:
    """The pictures of a folder, one file for each case."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = make_folder(Path(folder) / FOLDER)

    def _path(self, case: Case) -> Path:
        return self.folder / f"{case_folder_name(case.id)}.npz"

    def read(self, case: Case) -> Pictures | None:
        """Return the pictures of a case; None if they are missing, damaged, or of files that have changed."""
        path = self._path(case)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["identity"]) != identity_of(case):
                    return None
                names = [name for name in stored.files if name != "identity"]
                return {name: stored[name].astype(np.float32, copy=False) for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, case: Case, pictures: Pictures) -> None:
        stream = io.BytesIO()
        np.savez(stream, identity=np.array(identity_of(case)), **pictures)  # type: ignore[arg-type]
        write_bytes(self._path(case), stream.getvalue())


def identity_of(case: Case) -> str:
    """Return a text that changes with the files of a case and with how they are read."""
    files = []
    for path in case.paths:
        status = None if is_url(path) or not Path(path).exists() else Path(path).stat()
        files.append([path, None if status is None else [status.st_size, status.st_mtime_ns]])
    box = None if case.l0_box is None else list(vars(case.l0_box).values())
    return json.dumps([FORMAT, LONGEST, files, box, case.value("allow")])
