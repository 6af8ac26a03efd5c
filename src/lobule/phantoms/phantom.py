"""Parameters of a generated slide and of the lesions on it."""

from __future__ import annotations

from dataclasses import dataclass

from lobule.errors import ConfigError
from lobule.findings import LesionClass, lesion_class
from lobule.phantoms.outlines import Points

PATTERNS = ("solid", "nests", "cords", "glands")
"""How tumour cells are arranged in a lesion."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """One metastasis or tumour with its exact outline in level-0 pixels."""

    outline: Points
    size_um: float
    """The longest distance between two points of the outline."""
    pattern: str
    dark: float
    """Share of dark nuclei, 0 to 1."""
    crowding: float
    """Share of the possible positions that hold a cell, about 0.7 to 1."""
    eosin: float = 1.0
    """Eosin of the cytoplasm, about 0.3 to 1.05."""

    @property
    def lesion_class(self) -> LesionClass:
        return lesion_class(self.size_um)


ORGANS = ("node", "breast")
SCENES = ("normal", "benign", "in-situ", "invasive")
ARTEFACTS = ("fold", "pen", "bubble", "blur", "dust", "edge")


@dataclass(frozen=True)
class SlidePhantom:
    """A generated H&E slide. The same values give the same pixels, region by region."""

    seed: int
    width: int
    height: int
    mpp: float = 0.5
    """µm/px of level 0."""
    site: int | str = 0
    """Decides stain and scanner; 0 is the plain look."""
    tissue: float = 0.5
    """Share of the slide that is tissue; 1 is tissue from edge to edge."""
    macro: int = 0
    micro: int = 0
    itc: int = 0
    """How many lesions of each class are placed where `lesions` is None."""
    lesions: tuple[Lesion, ...] | None = None
    """Lesions that are used unchanged."""
    mimics: int = 0
    """Number of normal structures that resemble tumour: follicles, histiocytes, dense lymph tissue."""
    artefacts: tuple[str, ...] = ()
    """Any of fold, pen, bubble, blur, dust and edge (of the cover glass)."""
    organ: str = "node"
    """A lymph node or breast."""
    scene: str | None = None
    """For breast, one of the four classes of labelled images."""
    sections: int | None = None
    """Number of tissue sections; by default it follows from the size."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or not 0.05 <= self.mpp <= 8:
            raise ConfigError(
                "a generated slide needs a size and a resolution",
                expected="at least 1 × 1 px at 0.05 to 8 µm/px",
                actual=f"{self.width} × {self.height} px at {self.mpp:g} µm/px",
            )
        if not 0 <= self.tissue <= 1:
            raise ConfigError("tissue is a share of the slide", expected="0 to 1", actual=f"{self.tissue:g}")
        for name, value, choices in (
            ("organ", (self.organ,), ORGANS),
            ("scene", (self.scene,) if self.scene else (), SCENES),
            ("artefact", self.artefacts, ARTEFACTS),
        ):
            for one in value:
                if one not in choices:
                    raise ConfigError(f"no {name} '{one}'", expected=f"one of {', '.join(choices)}")

    @property
    def size_um(self) -> tuple[float, float]:
        return self.width * self.mpp, self.height * self.mpp
