"""Options of an export, and the layers and kinds of cases that formats choose from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Layer = Literal["findings", "tissue", "tiles", "reviews"]
LAYERS: tuple[Layer, ...] = ("findings", "tissue", "tiles", "reviews")
Kind = Literal["slide", "image", "exam"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. A format declares the ones that it supports."""

    layers: tuple[Layer, ...] | None = None
    """What to write, of `LAYERS`; None is the format's default."""
    min_score: float | None = None
    """Leave out findings and tiles with a lower score."""
    map_name: str | None = None
    """The map to export; by default the densest."""
    uncropped: bool = False
    """Keep level-0 coordinates, for a slide that QuPath opens without cropping it to its bounds."""
    source: Path | None = None
    """Folder with DICOM files of the slides, which the DICOM objects refer to."""
    ngff: Literal["0.5", "0.4"] = "0.5"
    """Version of OME-Zarr."""
    show_patients: bool = False
    """Write the names of patients."""

    def to_dict(self) -> dict[str, Any]:
        plain = dict(vars(self))
        plain["source"] = None if self.source is None else str(self.source)
        plain["layers"] = None if self.layers is None else list(self.layers)
        return plain
