"""`asap`: annotations in ASAP XML, the format of Camelyon, one file per slide."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from lobule.annotations import Polygon
from lobule.exports.case import ExportCase, Ring, rings_of
from lobule.exports.colours import colour_of, hexadecimal
from lobule.exports.export import CaseOutput, Export
from lobule.exports.json_stream import number
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.results.result import RESEARCH_USE

REVIEW_GROUP = "Reviewed"


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    for image in case.frames:
        path = folder / f"{case.file_name_of(image)}.xml"
        with path.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.write('<?xml version="1.0"?>\n')
            file.write(f"<!-- {escape(RESEARCH_USE)} -->\n<ASAP_Annotations>\n\t<Annotations>\n")
            groups = _write_annotations(case, image, options, file)
            file.write("\t</Annotations>\n\t<AnnotationGroups>\n")
            for group in groups:
                colour = hexadecimal(colour_of(group))
                file.write(f'\t\t<Group Name={quoteattr(group)} PartOfGroup="None" Color="{colour}">\n')
                file.write("\t\t\t<Attributes />\n\t\t</Group>\n")
            file.write("\t</AnnotationGroups>\n</ASAP_Annotations>\n")
    return CaseOutput()


def _write_annotations(case: ExportCase, image: str, options: ExportOptions, file: TextIO) -> list[str]:
    """Write all annotations and return their groups, each of which must be declared."""
    groups: dict[str, None] = {}
    layers = EXPORT.layers_of(options)
    for index, finding in case.findings(options, image) if "findings" in layers else ():
        group = _printable(finding.label or case.label)
        groups[group] = None
        for kind, ring in _shapes(finding):
            _write_one(file, f"Finding {index}, score {finding.score:.4f}", kind, group, ring)
    for sketch in case.drawn_outlines() if "reviews" in layers else ():
        if sketch.image == image:
            group = _printable(sketch.label or case.label)
            groups[group] = None
            _write_one(file, f"Drawn by {sketch.person}", "Polygon", group, sketch.ring)
    return list(groups)


def _shapes(finding: Finding) -> Iterator[tuple[str, Ring]]:
    """Yield the type and the points of each ASAP annotation of a finding."""
    if not finding.polygon and finding.box is None:
        yield "Dot", np.array([[finding.l0_x, finding.l0_y]], np.float64)
    for rings in rings_of(finding):
        kind = "Rectangle" if not finding.polygon else "Polygon"
        # ASAP has no holes: they are connected to the outline by bridges.
        yield kind, Polygon(rings[0], holes=tuple(rings[1:])).keyholed()


def _write_one(file: TextIO, name: str, kind: str, group: str, ring: Ring) -> None:
    name, group = quoteattr(_printable(name)), quoteattr(group)
    file.write(f'\t\t<Annotation Name={name} Type="{kind}" PartOfGroup={group} Color="#F4FA58">\n')
    file.write("\t\t\t<Coordinates>\n")
    for order, (x, y) in enumerate(ring.tolist()):
        file.write(f'\t\t\t\t<Coordinate Order="{order}" X="{number(x)}" Y="{number(y)}" />\n')
    file.write("\t\t\t</Coordinates>\n\t\t</Annotation>\n")


def _printable(text: str) -> str:
    """Replace control characters and lone surrogates, which XML does not allow."""
    return "".join(c if c.isprintable() else "?" for c in text)


EXPORT = Export(
    "asap",
    "ASAP XML: findings and drawn outlines",
    write,
    kinds=frozenset({"slide", "image", "exam"}),
    supports=frozenset({"layers", "min_score"}),
    layers=("findings", "reviews"),
)
