"""The tree of errors. Each names what failed, what was expected, what was found and the remedy.

LobuleError
├── UsageError              the request is wrong; nothing was tried (exit status 2)
│   ├── CohortError         a manifest with problems; lists every one with its row
│   ├── ConfigError         an option or a `--set key=value` that does not fit
│   ├── MissingExtra        a part of Lobule that is not installed
│   ├── MissingMpp          a slide that does not say its µm/px, and nobody supplied it
│   ├── FinerThanSlide      a resolution that the slide does not have, without `--upsample`
│   └── Leakage             a patient on both sides of a split
├── CaseError               belongs to one case; the run goes on (exit status 1)
│   ├── NothingToScore      readable, but empty; recorded as unscored and not as a failure
│   ├── NotReadable         missing, not a file, no permission
│   ├── UnknownFormat       no backend takes it
│   ├── DamagedFile         the file as a whole cannot be used
│   ├── DamagedTile         one tile of it cannot; names the level and the place
│   ├── TooLarge            declares sizes beyond what is sane; refused before decoding
│   ├── AnnotationError     outlines that cannot be used
│   └── NotAMammogram       a DICOM or PNG that is refused as a view of an exam
│       └── BlankMammogram  an image without a breast
├── ResultsError            a results folder that does not fit: another bundle, locked, full disk
│   └── DamagedResults      a chunk or part on disk that cannot be read; its case is made again
├── BundleError             a bundle that is damaged, tampered with or of another method
└── ModelError              the model itself failed: NaN scores, a shape that does not fit
"""

from __future__ import annotations

from collections.abc import Sequence


class LobuleError(Exception):
    """Base of all. `subject` is the file or thing; the rest are plain sentences or None."""

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
        # keyword-only arguments do not survive the default pickling, and errors cross processes
        return (_rebuild, (type(self), dict(self.__dict__), self.args))


def _rebuild(cls: type[LobuleError], state: dict[str, object], args: tuple[object, ...]) -> LobuleError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class UsageError(LobuleError):
    """The request is wrong; nothing was tried."""


SHOWN_PROBLEMS = 100


class CohortError(UsageError):
    """A manifest with problems. `problems` holds one sentence each, with its row."""

    def __init__(self, subject: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listing = "\n".join(f"  - {problem}" for problem in self.problems[:SHOWN_PROBLEMS])
        if len(self.problems) > SHOWN_PROBLEMS:
            listing += f"\n  - and {len(self.problems) - SHOWN_PROBLEMS:,} more"
        count = f"{len(self.problems)} problem" + ("" if len(self.problems) == 1 else "s")
        super().__init__(f"{count} in the cohort\n{listing}", subject=subject)


class ConfigError(UsageError):
    """An option that does not exist or does not fit."""


class MissingExtra(UsageError):
    """A part of Lobule that is not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        self.extra = extra
        super().__init__(
            f"{needed_for} needs the extra '{extra}', which is not installed",
            remedy=f"Install it with: pip install 'lobule[{extra}]'",
        )


class MissingMpp(UsageError):
    """A slide that does not say its µm/px."""

    def __init__(self, subject: object) -> None:
        super().__init__(
            "the file does not say its µm/px",
            subject=subject,
            remedy="Give it with --mpp, or in the cohort's mpp column",
        )


class FinerThanSlide(UsageError):
    """A resolution that the slide does not have."""


class Leakage(UsageError):
    """A patient on both sides of a split."""


class CaseError(LobuleError):
    """Belongs to one case; a run records it and goes on."""


class NothingToScore(CaseError):
    """A case that is readable but contains nothing to score, such as an exam of blank views.

    The scanner records the case as unscored, which is not a failure.
    """


class NotReadable(CaseError):
    """Missing, a directory, or not permitted."""


class UnknownFormat(CaseError):
    """No backend takes the file."""


class DamagedFile(CaseError):
    """The file as a whole cannot be used."""


class DamagedTile(CaseError):
    """One compressed tile cannot be decoded; `level` and `tile_index` (column, row) say which."""

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
    """Declared sizes beyond what is sane."""


class AnnotationError(CaseError):
    """Outlines that cannot be used."""


class NotAMammogram(CaseError):
    """An image that is refused as a view of an exam."""


class BlankMammogram(NotAMammogram):
    """A view without a breast: the image is empty, or nothing in it is large and bright enough."""


class ResultsError(LobuleError):
    """A results folder that does not fit."""


class DamagedResults(ResultsError):
    """A chunk of a map or a part of a table that cannot be read."""


class BundleError(LobuleError):
    """A bundle that cannot be trusted or does not fit."""


class ModelError(LobuleError):
    """The model itself failed."""
