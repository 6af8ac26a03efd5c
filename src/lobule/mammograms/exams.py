"""Exams from files: one view, or the four views of each visit in a folder of several studies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lobule.errors import LobuleError, NotAMammogram
from lobule.mammograms.dicom import examine_dicom, read_dicom
from lobule.mammograms.dicom_codes import Override
from lobule.mammograms.dicom_pixels import Pixels
from lobule.mammograms.png import read_png
from lobule.mammograms.record import Heading, Mammogram
from lobule.mammograms.views import VIEWS, View


@dataclass(frozen=True)
class Exam:
    """The files of the views of one visit."""

    patient: str | None
    views: Mapping[View, tuple[Heading, ...]]
    """The images of each view: the newest and largest one, then the others."""


@dataclass(frozen=True)
class ExamFolder:
    """The files of a folder: every file belongs to an exam, is refused, or failed."""

    exams: tuple[Exam, ...]
    refused: tuple[Heading, ...] = ()
    """Mammograms and other images that the rules refuse, with the reasons."""
    failed: Mapping[str, LobuleError] = field(default_factory=dict)
    """The error of each file that could not be read and of each study with several patients."""


def view_named(name: str) -> View:
    """The view with this name; `L-CC`, `l_cc`, `L_CC` and `lcc` are the same."""
    normalised = name.upper().replace("_", "").replace("-", "")
    view = f"{normalised[:1]}-{normalised[1:]}"
    for candidate in VIEWS:
        if candidate == view:
            return candidate
    raise NotAMammogram("there is no such view", expected=", ".join(VIEWS), actual=name)


def read_view(
    path: str | Path,
    *,
    view: View | None = None,
    pixels: Pixels = "nyu-raw",
    allow: Collection[Override] = (),
    horizontal_flip: str | None = None,
) -> Mammogram:
    """Read one image, PNG or DICOM. Raises `NotAMammogram` if a DICOM file shows another view than `view`.

    `horizontal_flip` of an exam list (NO or YES) states in which direction a PNG image is stored; without it,
    the pixels decide.
    """
    if str(path).lower().endswith(".png"):
        return read_png(path, view=view, horizontal_flip=horizontal_flip)
    mammogram = read_dicom(path, pixels=pixels, allow=allow, view=view)
    if view is not None and mammogram.view != view:
        raise NotAMammogram(
            "the file shows another view",
            subject=path,
            expected=view,
            actual=mammogram.view or "no view",
            remedy="Check the columns of the manifest",
        )
    return mammogram


def require_one_patient(headings: Iterable[Heading]) -> None:
    """Raise `NotAMammogram` if the headers of an exam name several patients."""
    patients = sorted({heading.patient for heading in headings if heading.patient})
    if len(patients) > 1:
        raise NotAMammogram(
            "the files of one exam belong to several patients",
            expected="one PatientID",
            actual=", ".join(patients),
            remedy="Sort the files by patient",
        )


def read_exams(folder: str | Path, *, allow: Collection[Override] = ()) -> ExamFolder:
    """Group all DICOM files below a folder into exams by study, without decoding pixels.

    For each view, the newest image is chosen, and among equally new ones the largest. The others become its
    alternates.
    """
    headings: list[Heading] = []
    failed: dict[str, LobuleError] = {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        try:
            headings.append(examine_dicom(path, allow=allow))
        except LobuleError as error:
            failed[str(path)] = error
    report = group_exams(headings)
    return replace(report, failed={**failed, **report.failed})


def group_exams(headings: Iterable[Heading]) -> ExamFolder:
    """Group images into exams by study, as `read_exams` does."""
    studies: dict[str, list[Heading]] = {}
    refused: list[Heading] = []
    failed: dict[str, LobuleError] = {}
    for heading in headings:
        if heading.is_usable:
            studies.setdefault(heading.study or str(Path(heading.path).parent), []).append(heading)
        else:
            refused.append(heading)
    exams = []
    for study, of_study in sorted(studies.items(), key=lambda item: item[1][0].path):
        try:
            require_one_patient(of_study)
        except NotAMammogram as error:
            failed[study] = error
            continue
        exams.append(_exam_of(of_study))
    return ExamFolder(tuple(exams), tuple(refused), failed)


def _exam_of(headings: Sequence[Heading]) -> Exam:
    newest_first = sorted(headings, key=_preference, reverse=True)
    views = {view: tuple(h for h in newest_first if h.view == view) for view in VIEWS}
    return Exam(headings[0].patient, {view: images for view, images in views.items() if images})


def _preference(heading: Heading) -> tuple[str, int, str]:
    return heading.acquired, heading.height * heading.width, heading.instance or heading.path
