"""The identity of a slide: a hash of the contents of all its files."""

from __future__ import annotations

from pathlib import Path

from lobule.errors import CaseError
from lobule.files import MIB, is_url
from lobule.fingerprints import fingerprint, fingerprint_of_files
from lobule.slides.dicom_series import files_of_slide

KEY_FILE_SUFFIXES = (".vms", ".vmu")
"""Suffixes of Hamamatsu's key files: text files that name the image files next to them."""
LARGEST_KEY_FILE = MIB


def slide_fingerprint(path: str, full: bool = False) -> str:
    """The identity of a slide or image, computed from all of its files.

    Args:
        path: The path of a case: a file, a folder, one file of a DICOM series or a URL.
        full: Read the complete files instead of trusting a stored hash.
    """
    if is_url(path) or Path(path).is_dir():
        return fingerprint(path, full)
    files = _files_with(Path(path))
    return fingerprint(path, full) if len(files) < 2 else fingerprint_of_files(files, full)


def _files_with(path: Path) -> list[Path]:
    """All files of a slide that is stored as several files in one folder, including `path`."""
    if not path.is_file():
        return [path]
    if path.suffix.lower() in KEY_FILE_SUFFIXES:
        return [path, *_files_named_in(path)]
    try:
        return [header.file for header in files_of_slide(str(path)) or ()] or [path]
    except (CaseError, OSError):  # DICOM, but not a slide
        return [path]


def _files_named_in(key_file: Path) -> list[Path]:
    """The files that the lines `Name=file` of a key file name, in its folder."""
    with key_file.open("rb") as file:
        text = file.read(LARGEST_KEY_FILE).decode("utf-8", errors="replace")
    values = {line.partition("=")[2].strip() for line in text.splitlines()}
    siblings = {item.name: item for item in key_file.parent.iterdir() if item.is_file()}
    return sorted(siblings[name] for name in values if name in siblings and name != key_file.name)
