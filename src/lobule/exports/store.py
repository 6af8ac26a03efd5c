"""Store the DICOM objects of an export on a DICOMweb server (STOW-RS). Nothing is ever replaced."""

from __future__ import annotations

from pathlib import Path

from lobule.dicomweb.archive import store
from lobule.dicomweb.server import Server
from lobule.errors import ConfigError, LobuleError, ResultsError
from lobule.exports.export import StoreReport
from lobule.exports.run import ExportReport
from lobule.results.result import RESEARCH_USE

SUFFIX = ".dcm"


def require_storable(to: str, address: str) -> Server:
    """Return the server for `--store` before anything is written.

    Raises:
        ConfigError: The format is not DICOM.
        UsageError: The address is not that of a server, or contains a password.
    """
    if not to.startswith("dicom-"):
        raise ConfigError(
            f"the format {to} cannot be stored on a DICOMweb server",
            expected="a format whose name begins with dicom-",
            remedy="Remove --store",
        )
    return Server(address)


def store_export(report: ExportReport, server: Server) -> StoreReport:
    """Store the objects of all exported cases; a failed one does not stop the others."""
    stored: list[str] = []
    present: list[str] = []
    failed: dict[str, str] = {}
    for record in report.exported:
        for name in sorted(name for name in record.files if name.endswith(SUFFIX)):
            try:
                (stored if _store_file(report.path / name, server) else present).append(name)
            except LobuleError as error:
                failed[name] = str(error)
    return StoreReport(server.root, tuple(stored), tuple(present), failed)


def _store_file(path: Path, server: Server) -> bool:
    """Store one object and return whether the server did not have it before."""
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True)
    if str(header.get("SeriesDescription", "")) != RESEARCH_USE:
        raise ResultsError(
            "the object does not say that it is for research use only, so it is not stored",
            subject=path,
            expected=f"SeriesDescription '{RESEARCH_USE}'",
            remedy="Export again with --fresh",
        )
    uids = (header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID)
    return store(server, path.read_bytes(), *map(str, uids))
