"""`Export`, the declaration of a format, and `EXPORTS`, the table of formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lobule.errors import ConfigError, MissingExtra
from lobule.exports.case import ExportCase
from lobule.exports.options import LAYERS, ExportOptions, Kind, Layer

EXPORTS: dict[str, str | Export] = {
    "qupath": "lobule.exports.qupath:EXPORT",
    "csv": "lobule.exports.tables:EXPORT",
    "camelyon16": "lobule.exports.camelyon16:EXPORT",
    "camelyon17": "lobule.exports.camelyon17:EXPORT",
    "asap": "lobule.exports.asap:EXPORT",
    "wsinfer": "lobule.exports.wsinfer:EXPORT",
    "coco": "lobule.exports.coco:EXPORT",
    "geoparquet": "lobule.exports.geoparquet:EXPORT",
    "dsa": "lobule.exports.dsa:EXPORT",
    "ome-zarr": "lobule.exports.ome_zarr:EXPORT",
    "spatialdata": "lobule.exports.spatial_data:EXPORT",
    "dicom-seg": "lobule.exports.dicom_seg:EXPORT",
    "dicom-pm": "lobule.exports.dicom_pm:EXPORT",
    "dicom-ann": "lobule.exports.dicom_ann:EXPORT",
    "dicom-sr": "lobule.exports.dicom_sr:EXPORT",
    "dicom-cad-sr": "lobule.exports.dicom_cad_sr:EXPORT",
    "dicom-gsps": "lobule.exports.dicom_gsps:EXPORT",
}
"""The location of each format's `Export`, or the value itself. A module is imported when it is used."""


@dataclass(frozen=True)
class CaseOutput:
    """What the export of one case leaves besides its files."""

    notes: tuple[str, ...] = ()
    """Sentences about content that the format or the case lacks."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the file about all cases."""


@dataclass(frozen=True)
class CaseRecord:
    """The outcome of one case, which `finish` and the report of the export use."""

    case: str
    status: str
    """Status of the result: complete, partial, unscored, failed, unfinished, not started or damaged."""
    scores: Mapping[str, float] = field(default_factory=dict)
    exported: bool = False
    files: Mapping[str, int] = field(default_factory=dict)
    """Size in bytes by path, relative to the folder of the export."""
    notes: tuple[str, ...] = ()
    error: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        plain = {**vars(self), "scores": dict(self.scores), "files": dict(self.files)}
        return plain | {"notes": list(self.notes), "summary": dict(self.summary)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CaseRecord:
        return cls(**{**plain, "notes": tuple(plain["notes"])})


@dataclass(frozen=True)
class StoreReport:
    """What was stored on a server."""

    server: str
    stored: tuple[str, ...] = ()
    """Files that were stored now."""
    present: tuple[str, ...] = ()
    """Files whose objects the server had already."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """The error of each file that could not be stored."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "stored": list(self.stored),
            "present": list(self.present),
            "failed": dict(self.failed),
        }


Write = Callable[[ExportCase, Path, ExportOptions], CaseOutput]
Finish = Callable[[Sequence[CaseRecord], Path, ExportOptions], None]


@dataclass(frozen=True)
class Export:
    """A format.

    Args:
        name: Its name in `EXPORTS`.
        title: One line for people.
        write: Writes the files of one case into a folder, which is empty at that time.
        kinds: Kinds of cases that the format can represent.
        supports: Names of the options that it supports.
        layers: Layers that are written by default. Empty if the format has no choice of layers.
        finish: Writes files about all cases, such as a table of scores.
        extra: The extra that installs `library`.
        library: The module that the format needs, if it is optional.
        variant: Distinguishes files of the same format that are written with other settings.
    """

    name: str
    title: str
    write: Write
    kinds: frozenset[Kind] = frozenset({"slide", "image"})
    supports: frozenset[str] = frozenset()
    layers: tuple[Layer, ...] = ()
    finish: Finish | None = None
    extra: str | None = None
    library: str | None = None
    variant: str = ""

    def check(self, options: ExportOptions) -> None:
        """Raise an error for an option that this format would ignore, or a library that is missing."""
        default = ExportOptions()
        for name in vars(options):
            if getattr(options, name) != getattr(default, name) and name not in self.supports:
                raise ConfigError(
                    f"the format {self.name} does not support the option {name}",
                    expected=", ".join(sorted(self.supports)) or "no options",
                    remedy="Remove the option",
                )
        for layer in options.layers or ():
            if layer not in LAYERS:
                raise ConfigError(f"there is no layer '{layer}'", expected=", ".join(LAYERS))
        if self.library is not None and find_spec(self.library) is None:
            raise MissingExtra(self.extra or "all", f"lobule export --to {self.name}")

    def layers_of(self, options: ExportOptions) -> tuple[Layer, ...]:
        return self.layers if options.layers is None else options.layers


def find_export(name: str) -> Export:
    """Return the format with a name of `EXPORTS`.

    Raises:
        ConfigError: There is no such format.
    """
    if name not in EXPORTS:
        near = get_close_matches(name, EXPORTS, 1)
        raise ConfigError(
            f"there is no export format '{name}'",
            expected=", ".join(EXPORTS),
            remedy=f"Did you mean '{near[0]}'?" if near else None,
        )
    entry = EXPORTS[name]
    if isinstance(entry, Export):
        return entry
    module, _, attribute = entry.partition(":")
    export = getattr(import_module(module), attribute)
    assert isinstance(export, Export)
    return export
