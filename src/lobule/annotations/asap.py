"""ASAP XML: the annotations of Camelyon16 and Camelyon17."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from lobule.annotations.outline import Annotation, Collector, Kind, kind_of_group, written_group

AREAS = {"Polygon", "Spline", "Rectangle"}
"""Types that outline an area. ASAP draws a smoothed Spline; converters use its points unchanged."""

COLOURS = {"tumour": "#64FE2E", "exclusion": "#FF0000", "normal": "#0080FF", "other": "#808080"}


@dataclass
class _AnnotationElement:
    """One `Annotation` element of the file."""

    attributes: dict[str, str]
    coordinates: list[dict[str, str]] = field(default_factory=list)


def read_asap(data: bytes, source: str, groups: Mapping[str, Kind] | None = None) -> Annotation:
    """The annotation in the bytes of an ASAP XML file."""
    collector = Collector(source)
    elements, parents = _parse(data, collector)
    for number, element in enumerate(elements, 1):
        name, group = element.attributes.get("Name", ""), element.attributes.get("PartOfGroup", "")
        location = f"annotation {number} ('{name}')"
        form = element.attributes.get("Type", "Polygon")
        if form not in AREAS:
            collector.warn(f"{location} is a {form}, which outlines no area, and is left out")
            continue
        ring = _points(element.coordinates, location, collector)
        collector.add([ring], _kind(group, parents, groups), name, group, location)
    return collector.annotation()


def _parse(data: bytes, collector: Collector) -> tuple[list[_AnnotationElement], dict[str, str]]:
    """Every `Annotation` element, and the parent of each declared group."""
    elements: list[_AnnotationElement] = []
    parents: dict[str, str] = {}
    path: list[str] = []

    def refuse(*_: object) -> None:
        raise collector.error(
            "the file declares a document type or an entity, which can contain an XML bomb",
            expected="plain ASAP XML",
            remedy="Save it again with ASAP, or remove the DOCTYPE",
        )

    def start(tag: str, attributes: dict[str, str]) -> None:
        if not path and tag != "ASAP_Annotations":
            expected = "the root ASAP_Annotations"
            raise collector.error("the file is not ASAP XML", expected=expected, actual=tag)
        path.append(tag)
        if tag == "Annotation":
            elements.append(_AnnotationElement(attributes))
        elif tag == "Coordinate" and "Annotation" in path:
            elements[-1].coordinates.append(attributes)
        elif tag == "Group":
            parents[attributes.get("Name", "")] = attributes.get("PartOfGroup", "None")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: path.pop()
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise collector.error("the XML is damaged", actual=str(error)) from None
    return elements, parents


def _points(
    coordinates: list[dict[str, str]], location: str, collector: Collector
) -> list[tuple[float, float]]:
    """Points sorted by their `Order` attribute."""
    orders = [coordinate.get("Order", "") for coordinate in coordinates]
    if all(order.strip().isdecimal() for order in orders):
        numbers = [int(order) for order in orders]
        if len(set(numbers)) < len(numbers):
            collector.warn(f"{location} has points with the same Order; they stay in the order of the file")
        coordinates = [coordinates[index] for index in sorted(range(len(numbers)), key=numbers.__getitem__)]
    elif any(orders):
        raise collector.error(f"{location} has an Order that is not a whole number")
    x, y = ([_number(point, axis, location, collector) for point in coordinates] for axis in "XY")
    return list(zip(x, y, strict=True))


def _number(point: Mapping[str, str], axis: str, location: str, collector: Collector) -> float:
    text = point.get(axis)
    if text is None:
        raise collector.error(f"{location} has a point without {axis}")
    if "," in text:
        raise collector.error(
            f"{location} has a coordinate with a decimal comma",
            expected="decimal points, as in 1000.5",
            actual=f'{axis}="{text}"',
            remedy="Replace the commas by points, or save the file under an English locale",
        )
    try:
        return float(text.replace("_", "?"))
    except ValueError:
        problem = f"{location} has a coordinate that is not a number"
        raise collector.error(problem, actual=f'{axis}="{text}"') from None


def _kind(group: str, parents: Mapping[str, str], groups: Mapping[str, Kind] | None) -> Kind:
    """The kind of a group. A group without a kind inherits the kind of its parent group."""
    visited = set()
    while (kind := kind_of_group(group, groups)) == "other" and group in parents and group not in visited:
        visited.add(group)
        group = parents[group]
    return kind


def write_asap(annotation: Annotation) -> bytes:
    """Convert to ASAP XML. A polygon with holes becomes one ring with bridges (`Polygon.keyholed`)."""
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    used: dict[str, str] = {}
    for index, polygon in enumerate(annotation.polygons):
        group = written_group(polygon)
        if group != "None":
            used.setdefault(group, COLOURS[polygon.kind])
        name = quoteattr(polygon.name or f"Annotation {index}")
        attributes = f'Name={name} Type="Polygon" PartOfGroup={quoteattr(group)} Color="#F4FA58"'
        lines += [f"\t\t<Annotation {attributes}>", "\t\t\t<Coordinates>"]
        lines += [
            f'\t\t\t\t<Coordinate Order="{order}" X="{_text(x)}" Y="{_text(y)}" />'
            for order, (x, y) in enumerate(polygon.keyholed().tolist())
        ]
        lines += ["\t\t\t</Coordinates>", "\t\t</Annotation>"]
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    for group, colour in used.items():
        lines.append(f'\t\t<Group Name={quoteattr(group)} PartOfGroup="None" Color="{colour}">')
        lines += ["\t\t\t<Attributes />", "\t\t</Group>"]
    lines += ["\t</AnnotationGroups>", "</ASAP_Annotations>", ""]
    return "\n".join(lines).encode()


def _text(value: float) -> str:
    """The shortest decimal text that parses to the same number."""
    return repr(value).removesuffix(".0")
