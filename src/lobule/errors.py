"""The tree of exceptions. Each message says what failed, what was expected, what was there and how to fix it.

LobuleError
├── UsageError              the request is invalid and no work was started (exit status 2)
│   ├── CohortError         the manifest has problems; each is listed with its row
│   ├── ConfigError         an option or a setting (`--set key=value`) is unknown or invalid
│   ├── MissingExtra        an optional dependency is not installed
│   ├── MissingMpp          the slide does not state its µm/px and none was supplied
│   ├── FinerThanSlide      the resolution is finer than that of the slide, and `--upsample` is not set
│   └── Leakage             a patient appears on both sides of a split
├── CaseError               one case failed; the run continues with the others (exit status 1)
│   ├── NothingToScore      the case is readable but empty; it is recorded as unscored, not as failed
│   ├── NotReadable         the file is missing, is not a file or may not be read
│   ├── UnknownFormat       no backend can read the file
│   ├── DamagedFile         the whole file is unusable
│   ├── DamagedTile         one tile is unusable; the message names its level and position
│   ├── TooLarge            the declared size is implausible; the file is refused before decoding
│   ├── AnnotationError     the outlines are unusable
│   └── NotAMammogram       a DICOM or PNG file is not accepted as a view of an exam
│       └── BlankMammogram  the image shows no breast
├── ResultsError            the results folder is unusable: another bundle, locked, disk full
│   └── DamagedResults      a stored chunk cannot be read; its case is scanned again
├── BundleError             the bundle is damaged, was modified or belongs to another method
└── ModelError              the model failed: NaN scores or an unexpected shape
    └── DeviceLost          no device of the scan computes any more; the same command continues the scan
"""

from __future__ import annotations

from collections.abc import Sequence


class LobuleError(Exception):
    """Base class of all exceptions of Lobule.

    Args:
        problem: What failed, as a sentence without a full stop.
        subject: The file, case or setting that the error is about.
        expected: What was expected.
        actual: What was there instead.
        remedy: What the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        subject: object | None = None,
        expected: str | None = None,
        actual: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.subject = None if subject is None else str(subject)
        self.expected = expected
        self.actual = actual
        self.remedy = remedy
        super().__init__(self.message())

    def message(self) -> str:
        first = f"{self.subject}: {self.problem}" if self.subject else self.problem
        sentences = [first if "\n" in first else first.rstrip(".") + "."]
        if self.expected:
            sentences.append(f"Expected {self.expected.rstrip('.')}.")
        if self.actual:
            sentences.append(f"Found {self.actual.rstrip('.')}.")
        if self.remedy:
            sentences.append(self.remedy.rstrip(".") + ".")
        return " ".join(sentences)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are sent between processes, and the default pickling loses keyword-only arguments.
        return (_rebuild, (type(self), dict(self.__dict__), self.args))


def _rebuild(cls: type[LobuleError], state: dict[str, object], args: tuple[object, ...]) -> LobuleError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class UsageError(LobuleError):
    """The request is invalid and no work was started."""


SHOWN_PROBLEMS = 100


class CohortError(UsageError):
    """The manifest has problems; `problems` has one sentence for each, with its row."""

    def __init__(self, subject: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listing = "\n".join(f"  - {problem}" for problem in self.problems[:SHOWN_PROBLEMS])
        if len(self.problems) > SHOWN_PROBLEMS:
            listing += f"\n  - and {len(self.problems) - SHOWN_PROBLEMS:,} more"
        count = f"{len(self.problems)} problem" + ("" if len(self.problems) == 1 else "s")
        super().__init__(f"{count} in the cohort\n{listing}", subject=subject)


class ConfigError(UsageError):
    """An option or a setting is unknown or invalid."""


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        self.extra = extra
        super().__init__(
            f"{needed_for} needs the extra '{extra}', which is not installed",
            remedy=f"Install it with: pip install 'lobule[{extra}]'",
        )


class MissingMpp(UsageError):
    """The slide does not state its µm/px and none was supplied."""

    def __init__(self, subject: object) -> None:
        super().__init__(
            "the file does not say its µm/px",
            subject=subject,
            remedy="Give it with --slide-mpp, or in the cohort's mpp column",
        )


class FinerThanSlide(UsageError):
    """The requested resolution is finer than that of the slide."""


class Leakage(UsageError):
    """A patient appears on both sides of a split."""


class CaseError(LobuleError):
    """One case failed; a run records the error and continues with the other cases."""


class NothingToScore(CaseError):
    """A case that is readable but contains nothing to score, such as an exam of blank views.

    The scanner records the case as unscored, which is not a failure.
    """


class NotReadable(CaseError):
    """The file is missing, is a directory or may not be read."""


class UnknownFormat(CaseError):
    """No backend can read the file."""


class DamagedFile(CaseError):
    """The whole file is unusable."""


def damaged(subject: object, problem: str, cause: object) -> DamagedFile:
    """Return the error for a damaged file; `cause` is an exception or a description."""
    actual = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)
    return DamagedFile(problem, subject=subject, actual=actual, remedy="Copy the file again from its source")


class DamagedTile(CaseError):
    """One compressed tile cannot be decoded; `level` and `tile_index` (column, row) identify it."""

    def __init__(
        self,
        subject: object,
        level: int,
        tile_index: tuple[int, int],
        cause: str,
        *,
        l0_box: object | None = None,
    ) -> None:
        self.level = level
        self.tile_index = tile_index
        self.cause = cause
        self.l0_box = l0_box
        box_text = f", level-0 box {l0_box}" if l0_box is not None else ""
        super().__init__(
            f"tile (column {tile_index[0]}, row {tile_index[1]}) of level {level}{box_text} "
            f"cannot be decoded: {cause}",
            subject=subject,
        )


class TooLarge(CaseError):
    """The file declares an implausible size; it is refused before decoding."""


class AnnotationError(CaseError):
    """The outlines of an annotation are unusable."""


class NotAMammogram(CaseError):
    """The image is not accepted as a view of an exam."""


class BlankMammogram(NotAMammogram):
    """The view shows no breast: no region of the image is large and bright enough."""


class ResultsError(LobuleError):
    """The results folder is unusable: it belongs to another bundle, is locked or the disk is full."""


class DamagedResults(ResultsError):
    """A stored chunk of a map or a table cannot be read."""


class BundleError(LobuleError):
    """The bundle is damaged, was modified or belongs to another method."""


class ModelError(LobuleError):
    """The model failed: it produced NaN scores or an unexpected shape."""


class DeviceLost(ModelError):
    """No device of the scan computes any more. The same command continues the scan in a new process."""
