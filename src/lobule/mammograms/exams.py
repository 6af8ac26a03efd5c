"""Exams from files: the four views of one person, from a folder of several studies or a manifest row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lobule.errors import LobuleError, NotAMammogram
from lobule.mammograms.dicom import Pixels, examine_dicom, read_dicom
from lobule.mammograms.dicom_codes import Override
from lobule.mammograms.png import read_png
from lobule.mammograms.record import Decision, Heading, Mammogram
from lobule.mammograms.views import VIEWS, View


@dataclass(frozen=True)
class Exam:
    """The files of the views of one visit. Pixels are decoded only by `read`."""

    patient: str | None
    study: str | None
    views: Mapping[View, tuple[Heading, ...]]
    """The images of each view: the chosen one, then its alternates."""
    decisions: tuple[Decision, ...] = ()
    allow: frozenset[Override] = frozenset()
    """Kinds of images that were allowed by name when the exam was assembled."""

    @property
    def missing(self) -> tuple[View, ...]:
        return tuple(view for view in VIEWS if view not in self.views)

    @property
    def is_complete(self) -> bool:
        """Whether all views exist, as the view-wise model requires; the image-wise model and GMIC do not."""
        return not self.missing

    def read(self, view: View, index: int = 0, *, pixels: Pixels = "nyu-raw") -> Mammogram:
        """Decode one image of a view; index 0 is the chosen one."""
        heading = self.views[view][index]
        return read_view(heading.path, view=view, pixels=pixels, allow=self.allow)


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
) -> Mammogram:
    """Read one image, PNG or DICOM. Raises `NotAMammogram` if a DICOM file shows another view than `view`."""
    if str(path).lower().endswith(".png"):
        return read_png(path, view=view)
    mammogram = read_dicom(path, pixels=pixels, allow=allow)
    if view is not None and mammogram.view != view:
        raise _another_view(path, view, mammogram.view)
    return mammogram


def _another_view(path: str | Path, expected: View, actual: View | None) -> NotAMammogram:
    return NotAMammogram(
        "the file shows another view",
        subject=path,
        expected=expected,
        actual=actual or "no view",
        remedy="Check the columns of the manifest",
    )


def exam_of_files(
    views: Mapping[str, str | Path | Sequence[str | Path]], *, allow: Collection[Override] = ()
) -> Exam:
    """Create an exam from the files of each view, named as in a manifest (`l_cc` and so on).

    The first file of a view is the chosen one. DICOM files must show the view they are listed under, and
    belong to one person.
    """
    headings_of: dict[View, tuple[Heading, ...]] = {}
    for name, files in views.items():
        view = view_named(name)
        paths = (files,) if isinstance(files, str | Path) else tuple(files)
        headings = tuple(_expected(path, view, allow) for path in paths)
        if headings:
            headings_of[view] = headings
    together = [heading for headings in headings_of.values() for heading in headings]
    _same_patient(together)
    ordered = {view: headings_of[view] for view in VIEWS if view in headings_of}
    patient = next((heading.patient for heading in together if heading.patient), None)
    study = next((heading.study for heading in together if heading.study), None)
    return Exam(patient, study, ordered, _missing(ordered), frozenset(allow))


def _expected(path: str | Path, view: View, allow: Collection[Override]) -> Heading:
    if str(path).lower().endswith(".png"):
        return Heading(str(path), view=view)
    heading = examine_dicom(path, allow=allow)
    if heading.refusals:
        reasons = " ".join(decision.sentence for decision in heading.refusals)
        raise NotAMammogram("the image cannot be used as a view of an exam", subject=path, actual=reasons)
    if heading.view != view:
        raise _another_view(path, view, heading.view)
    return heading


def _same_patient(headings: Iterable[Heading]) -> None:
    patients = sorted({heading.patient for heading in headings if heading.patient})
    if len(patients) > 1:
        raise NotAMammogram(
            "the files of one exam belong to several patients",
            expected="one PatientID",
            actual=", ".join(patients),
            remedy="Sort the files by patient",
        )


def _missing(views: Mapping[View, object]) -> tuple[Decision, ...]:
    missing = [view for view in VIEWS if view not in views]
    if not missing:
        return ()
    sentence = f"The exam has no {', '.join(missing)}: only models that read single views can score it."
    return (Decision("views", "noted", sentence),)


def read_exams(folder: str | Path, *, allow: Collection[Override] = ()) -> ExamFolder:
    """Group all DICOM files below a folder into exams by study, without decoding pixels.

    For each view, the newest image is chosen, and among equally new ones the largest. The others become its
    alternates.
    """
    studies: dict[str, list[Heading]] = {}
    refused, failed = [], {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        try:
            heading = examine_dicom(path, allow=allow)
        except LobuleError as error:
            failed[str(path)] = error
            continue
        if heading.is_usable:
            studies.setdefault(heading.study or str(path.parent), []).append(heading)
        else:
            refused.append(heading)
    exams = []
    for study, headings in sorted(studies.items(), key=lambda item: item[1][0].path):
        try:
            _same_patient(headings)
        except NotAMammogram as error:
            failed[study] = error
            continue
        exams.append(_exam_of(headings, frozenset(allow)))
    return ExamFolder(tuple(exams), tuple(refused), failed)


def _exam_of(headings: Sequence[Heading], allow: frozenset[Override]) -> Exam:
    views: dict[View, tuple[Heading, ...]] = {}
    decisions: list[Decision] = []
    for view in VIEWS:
        of_view = sorted((h for h in headings if h.view == view), key=_preference, reverse=True)
        if not of_view:
            continue
        views[view] = tuple(of_view)
        if len(of_view) > 1:
            name = Path(of_view[0].path).name
            sentence = (
                f"{view} has {len(of_view)} images; {name} is the newest and largest, the others alternates."
            )
            decisions.append(Decision("choice", "noted", sentence))
    decisions += _missing(views)
    return Exam(headings[0].patient, headings[0].study, views, tuple(decisions), allow)


def _preference(heading: Heading) -> tuple[str, int, str]:
    return heading.acquired, heading.height * heading.width, heading.instance or heading.path
