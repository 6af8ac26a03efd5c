"""GMIC: scores each view alone, first as a whole, then in its most salient regions (Shen et al. 2020).

"An interpretable classifier for high-resolution breast cancer screening images utilizing weakly supervised
localization", Medical Image Analysis 68, 2021, arXiv 2002.07613. A global network computes a saliency
map of each class. A local network reads the six most salient regions at full resolution, attention weights
them, and both results are combined.

Published on the screening population: AUC 0.93 of malignancy by breast. In the published reader study (1,440
breasts) five models averaged reach AUROC 0.8812, one 0.8567.

Views are cropped and centred as for the four-view classifier. Regions are chosen by comparing saliencies,
which rounding could change, so this model always runs in float32. The score of a breast is the mean of the
scores of its views; the publication scores images.

Research use only.
"""

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.gmic.config import SCAN_SETTINGS, Config

if TYPE_CHECKING:
    from lobule.methods.gmic.bundle import convert, load
    from lobule.methods.gmic.predictor import GmicPredictor

METHOD = Method(
    name="gmic",
    summary="Scores of each mammogram view from its salient regions; converted, not trained.",
    config=Config,
    load=imported_when_called("lobule.methods.gmic.bundle", "load"),
    kinds=("exam",),
    scan_settings=SCAN_SETTINGS,
    unsupported=("refine", "stride", "slide_mpp", "upsample"),
)

__all__ = ["Config", "GmicPredictor", "METHOD", "convert", "load"]

__getattr__ = attributes_imported_when_used(
    __name__, {"convert": "bundle", "load": "bundle", "GmicPredictor": "predictor"}
)
