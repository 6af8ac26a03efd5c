"""Search the studies of a DICOMweb server, and store objects there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lobule.dicomweb.server import JSON, Server
from lobule.errors import NotReadable

PAGE = 200
"""Studies per answer to a search."""
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
PATIENT, STUDY_DATE, MODALITY, SERIES_NUMBER = "00100020", "00080020", "00080060", "00200011"
DESCRIPTION = "0008103E"


def value_of(values: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an attribute of an answer in JSON as text; empty if it has none."""
    entries = (values.get(tag) or {}).get("Value") or [""]
    first = entries[0]
    return str(first.get("Alphabetic", "") if isinstance(first, dict) else first).strip()


def search_studies(server: Server, params: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return all studies that match, page by page, sorted by date and UID."""
    studies: dict[str, dict[str, Any]] = {}
    while True:
        page = [("limit", str(PAGE)), ("offset", str(len(studies)))]
        answers = {value_of(study, STUDY): study for study in server.json("/studies", [*params, *page])}
        new = {uid: study for uid, study in answers.items() if uid and uid not in studies}
        studies |= new
        if not new:  # A server that ignores the offset repeats its answer.
            break
    return sorted(studies.values(), key=lambda study: (value_of(study, STUDY_DATE), value_of(study, STUDY)))


def search_series(server: Server, study: str, modality: str) -> list[dict[str, Any]]:
    """Return the series of a study with a modality, sorted by number and UID."""
    matching_series = server.json(f"/studies/{study}/series", [("Modality", modality)])
    return sorted(
        (series for series in matching_series if value_of(series, MODALITY) in ("", modality)),
        key=lambda series: (value_of(series, SERIES_NUMBER).zfill(12), value_of(series, SERIES)),
    )


def store(server: Server, content: bytes, study: str, series: str, instance: str) -> bool:
    """Store an object unless the server has one with its UID. Nothing is ever replaced.

    Returns:
        Whether it was stored now.

    Raises:
        NotReadable: The server refuses or fails.
    """
    if _is_stored(server, study, series, instance):
        return False
    boundary = f"lobule-{hashlib.sha256(content).hexdigest()[:32]}"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    answer = server.request(
        "POST", "/studies", accept=JSON, body=head + content + f"\r\n--{boundary}--\r\n".encode(),
        content_type=f'multipart/related; type="application/dicom"; boundary={boundary}',
        accepted=(200, 202, 409),
    )  # fmt: skip
    # A repeated request is refused with 409 if its first attempt was stored and only the answer was lost.
    if not _is_stored(server, study, series, instance):
        raise NotReadable(
            f"the DICOMweb server did not store the object (status {answer.status})",
            subject=server.root,
            actual=answer.content[:300].decode("utf-8", "replace"),
        )
    return True


def _is_stored(server: Server, study: str, series: str, instance: str) -> bool:
    path = f"/studies/{study}/series/{series}/instances"
    answers = server.json(path, [("SOPInstanceUID", instance)], accepted=(200, 204, 404))
    return any(value_of(values, INSTANCE) == instance for values in answers)
