"""Lobule finds breast cancer in tissue slides and mammograms, from whatever labels you have.

Research use only: not a medical device, not for diagnosis.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lobule.api import evaluate, export, extract_features, import_annotations, report, scan, train
    from lobule.audit import check
    from lobule.bundles import Bundle, read_bundle
    from lobule.cohort import Case, Cohort, read_cohort
    from lobule.comparison import compare
    from lobule.results import open_results
    from lobule.results.folder import Results
    from lobule.slides.slide import Slide, open_slide

__version__ = "0.1.0"

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
"""Model hubs learn nothing about the user. Their client, which timm imports, reads this at import."""

_LAZY = {
    "open_slide": "lobule.slides.slide",
    "Slide": "lobule.slides.slide",
    "read_cohort": "lobule.cohort",
    "Cohort": "lobule.cohort",
    "Case": "lobule.cohort",
    "read_bundle": "lobule.bundles",
    "Bundle": "lobule.bundles",
    "open_results": "lobule.results",
    "Results": "lobule.results.folder",
    "scan": "lobule.api",
    "train": "lobule.api",
    "evaluate": "lobule.api",
    "export": "lobule.api",
    "import_annotations": "lobule.api",
    "report": "lobule.api",
    "extract_features": "lobule.api",
    "check": "lobule.audit",
    "compare": "lobule.comparison",
}
"""Each public name and the module that defines it. Modules are imported at first use, so that
`import lobule` does not import torch."""

__all__ = [
    "Bundle",
    "Case",
    "Cohort",
    "Results",
    "Slide",
    "__version__",
    "check",
    "compare",
    "evaluate",
    "export",
    "extract_features",
    "import_annotations",
    "open_results",
    "open_slide",
    "read_bundle",
    "read_cohort",
    "report",
    "scan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lobule' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
