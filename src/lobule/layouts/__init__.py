"""Cohorts from the folders of public data sets, as they are released.

`docs/data.md` describes each layout, and `docs/sources.md` names the documents that state it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from lobule.cohort import Cohort

LAYOUTS: Mapping[str, str] = {
    "bach": "lobule.layouts.histology:bach",
    "bracs": "lobule.layouts.histology:bracs",
    "bracs-roi": "lobule.layouts.histology:bracs_roi",
    "breakhis": "lobule.layouts.histology:breakhis",
    "camelyon16": "lobule.layouts.camelyon16:camelyon16",
    "camelyon17": "lobule.layouts.camelyon17:camelyon17",
    "camelyon17-wilds": "lobule.layouts.camelyon17:camelyon17_wilds",
    "cbis-ddsm": "lobule.layouts.cbis_ddsm:cbis_ddsm",
    "cmmd": "lobule.layouts.cmmd:cmmd",
    "csaw-cc": "lobule.layouts.screening:csaw_cc",
    "embed": "lobule.layouts.embed:embed",
    "inbreast": "lobule.layouts.inbreast:inbreast",
    "reviews": "lobule.layouts.reviews:reviewed_results",
    "rsna-mammo": "lobule.layouts.screening:rsna_mammo",
    "vindr-mammo": "lobule.layouts.screening:vindr_mammo",
    "folder": "lobule.layouts.folders:plain_folder",
}
"""Each layout and its function. `lobule cohort --from dicom` is separate: it also lists files it left out."""


def read_layout(name: str, folder: str | Path) -> Cohort:
    """Create a cohort from a folder in one of `LAYOUTS`.

    Raises:
        CohortError: The folder contains no case in this layout.
        NotReadable: There is no such folder, or a table in it cannot be read.
    """
    module, _, function = LAYOUTS[name].partition(":")
    layout: Callable[[str | Path], Cohort] = getattr(import_module(module), function)
    return layout(folder)
