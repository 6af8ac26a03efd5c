"""The layout `dicomweb` of `lobule cohort`: the slides or the exams of a DICOMweb server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lobule.cohort import Case, Cohort
from lobule.dicomweb.archive import (
    DESCRIPTION,
    PATIENT,
    SERIES,
    STUDY,
    STUDY_DATE,
    search_series,
    search_studies,
    value_of,
)
from lobule.dicomweb.server import Server, server_of
from lobule.errors import CohortError, LobuleError

MODALITIES = "ModalitiesInStudy"
SLIDES, MAMMOGRAMS = "SM", "MG"

CasesAndRest = tuple[list[Case], dict[str, str]]
"""Cases, and what was left out with the reasons."""


def dicomweb(url: str) -> tuple[Cohort, dict[str, str]]:
    """Build a cohort of the slides or the exams of a server.

    Args:
        url: The address of the server. A query such as `?PatientID=7` or `?ModalitiesInStudy=SM` restricts
            the studies; all attributes that the server can search for are allowed.

    Returns:
        The cohort, and what was left out, each with the reason.

    Raises:
        CohortError: The server has no such images, or has both slides and mammograms.
        NotReadable: The server cannot be searched.
        UsageError: The address is not that of a server, or contains a password.
    """
    address = urlsplit(url)
    filters = parse_qsl(address.query)
    server = server_of(address._replace(query="", fragment="").geturl().rstrip("/"))
    modality = dict(filters).get(MODALITIES)
    slides: CasesAndRest = ([], {})
    mammograms: CasesAndRest = ([], {})
    if modality in (None, SLIDES):
        slides = _slides(server, _with_modality(filters, SLIDES))
    if modality in (None, MAMMOGRAMS):
        mammograms = _exams(server, _with_modality(filters, MAMMOGRAMS))
    if slides[0] and mammograms[0]:
        raise CohortError(
            url,
            ["the server has both slides and mammograms; "
             "add ?ModalitiesInStudy=SM or ?ModalitiesInStudy=MG to the address"],
        )  # fmt: skip
    cases, left_out = slides if slides[0] else mammograms
    if not cases:
        reasons = [f"{item}: {reason}" for item, reason in left_out.items()]
        raise CohortError(url, ["the server has no slides and no mammograms that match", *reasons])
    return Cohort(tuple(cases)), left_out


def _with_modality(filters: Sequence[tuple[str, str]], modality: str) -> list[tuple[str, str]]:
    return [*((name, value) for name, value in filters if name != MODALITIES), (MODALITIES, modality)]


def _slides(server: Server, filters: Sequence[tuple[str, str]]) -> CasesAndRest:
    """Return a case for each series of slides, named after the UID of the series."""
    cases = []
    for study in search_studies(server, filters):
        study_uid = value_of(study, STUDY)
        for series in search_series(server, study_uid, SLIDES):
            uid = value_of(series, SERIES)
            cases.append(
                Case(
                    uid,
                    value_of(study, PATIENT) or study_uid,
                    "slide",
                    path=f"{server.root}/studies/{study_uid}/series/{uid}",
                    attributes=_attributes(study, series),
                )
            )
    return cases, {}


def _exams(server: Server, filters: Sequence[tuple[str, str]]) -> CasesAndRest:
    """Return a case for each study with views, named after the UID of the study."""
    from lobule.mammograms.dicom_rules import judge_header
    from lobule.mammograms.exams import group_exams
    from lobule.mammograms.record import Heading

    cases: list[Case] = []
    left_out: dict[str, str] = {}
    for study in search_studies(server, filters):
        study_uid = value_of(study, STUDY)
        headings: list[Heading] = []
        for series in search_series(server, study_uid, MAMMOGRAMS):
            series_path = f"/studies/{study_uid}/series/{value_of(series, SERIES)}"
            for dataset in server.metadata(series_path):
                path = f"{server.root}{series_path}/instances/{dataset.get('SOPInstanceUID', '')}"
                try:
                    headings.append(judge_header(path, dataset, frozenset()))
                except LobuleError as error:
                    left_out[path] = str(error)
        report = group_exams(headings)
        left_out |= {
            heading.path: heading.refusals[0].sentence for heading in report.refused if heading.refusals
        }
        left_out |= {item: str(error) for item, error in report.failed.items()}
        for exam in report.exams:
            views = {
                view.lower().replace("-", "_"): tuple(heading.path for heading in view_headings)
                for view, view_headings in exam.views.items()
            }
            patient = exam.patient or study_uid
            cases.append(Case(study_uid, patient, "exam", views=views, attributes=_attributes(study)))
    return cases, left_out


def _attributes(study: Mapping[str, Any], series: Mapping[str, Any] | None = None) -> dict[str, str]:
    values = {"study_date": value_of(study, STUDY_DATE), "description": value_of(series or {}, DESCRIPTION)}
    return {name: value for name, value in values.items() if value}
