"""The DICOM codes that decide whether an image is a usable view, and which view it is."""

from __future__ import annotations

from typing import Literal, cast, get_args

from lobule.errors import NotAMammogram

Override = Literal[
    "secondary capture", "computed radiography", "digital x-ray", "synthesised", "8-bit", "unstated class",
    "unstated view", "several patients",
]  # fmt: skip
"""Kinds of images that are refused unless the user allows them by name.

An unstated class is a header without a storage class. An unstated view is a header without side or
projection, whose view the manifest states. Several patients are views of one exam whose headers have
different patients, as in data sets that use this attribute for the names of images.
"""
OVERRIDES: frozenset[Override] = frozenset(get_args(Override))


def overrides_of(cell: str | None) -> frozenset[Override]:
    """Read the column `allow` of a manifest, such as `secondary capture; 8-bit`.

    Raises:
        NotAMammogram: The cell contains another word.
    """
    names = frozenset(" ".join(name.lower().split()) for name in (cell or "").split(";") if name.strip())
    if unknown := sorted(names - OVERRIDES):
        raise NotAMammogram(
            "the column allow names no kind of image",
            expected=f"some of {', '.join(sorted(OVERRIDES))}, separated by ;", actual=", ".join(unknown),
        )  # fmt: skip
    return cast("frozenset[Override]", names)


PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
"""Digital Mammography X-Ray Image, For Presentation: the only class that is always accepted."""

NEVER: dict[str, str] = {
    "1.2.840.10008.5.1.4.1.1.1.2.1": "raw detector data For Processing, on which no model here was trained",
    "1.2.840.10008.5.1.4.1.1.13.1.3": "breast tomosynthesis",
    "1.2.840.10008.5.1.4.1.1.13.1.4": "a projection of breast tomosynthesis",
    "1.2.840.10008.5.1.4.1.1.13.1.5": "a raw projection of breast tomosynthesis",
}
ONLY_IF_ALLOWED: dict[str, Override] = {
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.1": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.2": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.3": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.4": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.1": "computed radiography",
    "1.2.840.10008.5.1.4.1.1.1.1": "digital x-ray",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "digital x-ray",
}
SYNTHESISED = ("TOMO", "GENERATED_2D", "VOLUME", "VOLUME_RENDER", "TOMOSYNTHESIS")
"""Values of ImageType that mark a flat image computed from tomosynthesis, by different vendors."""

ANGLES: dict[str, Literal["CC", "MLO"]] = {
    "399162004": "CC",
    "R-10242": "CC",
    "399368009": "MLO",
    "R-10226": "MLO",
}
OTHER_VIEWS: dict[str, str] = {
    "399260004": "medio-lateral", "R-10224": "medio-lateral",
    "399352003": "latero-medial", "R-10228": "latero-medial",
    "399099002": "latero-medial oblique", "R-10230": "latero-medial oblique",
    "399192008": "cranio-caudal exaggerated laterally", "R-1024A": "cranio-caudal exaggerated laterally",
    "399101009": "cranio-caudal exaggerated medially", "R-1024B": "cranio-caudal exaggerated medially",
    "399196006": "caudo-cranial", "R-10244": "caudo-cranial",
    "399188001": "superolateral to inferomedial oblique", "R-102D0": "superolateral to inferomedial oblique",
    "441555000": "inferomedial to superolateral oblique", "R-40AAA": "inferomedial to superolateral oblique",
    "127457009": "specimen",
}  # fmt: skip
MODIFIERS: dict[str, str] = {
    "399163009": "magnification",
    "399055006": "spot compression",
    "399209000": "implant displaced",
    "399197002": "rolled",
    "399226006": "rolled",
    "415670009": "rolled",
    "414493004": "rolled",
    "399161006": "cleavage",
    "399110001": "tangential",
    "399011000": "axillary tail",
    "127457009": "specimen",
}
