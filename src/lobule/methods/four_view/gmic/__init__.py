"""GMIC: each view alone, first as a whole, then where the first look points (Shen et al. 2020).

"An interpretable classifier for high-resolution breast cancer screening images utilizing weakly supervised
localization", Medical Image Analysis 68, 2021, arXiv 2002.07613. A coarse network makes a saliency map of
each class, the six most salient regions are looked at closely, attention weighs them, and both looks are
joined.

Published on the screening population: AUC 0.93 of malignancy by breast. In the published reader study (1,440
breasts) five models averaged reach AUROC 0.8812, one 0.8567.

It stands beside the four-view classifier because it reads the same exams in the same way: crop, centre and
window are shared. Regions are found by comparing saliencies, so this model runs in float32 on every machine.
A breast's score is the mean of its views'; the publication scores images.

Research use only.
"""

from lobule.methods.four_view.gmic.config import SETTABLE, Config
from lobule.methods.four_view.gmic.convert import convert
from lobule.methods.four_view.gmic.predictor import GmicPredictor, load

__all__ = ["SCAN_IGNORES", "SCAN_SETTINGS", "Config", "GmicPredictor", "convert", "load"]

SCAN_SETTINGS = SETTABLE
SCAN_IGNORES = ("stride", "mpp", "upsample")
"""An exam's views are cropped and cut as the network wants them."""
