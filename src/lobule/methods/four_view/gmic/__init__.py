"""GMIC: scores each view alone, first as a whole, then in its most salient regions (Shen et al. 2020).

"An interpretable classifier for high-resolution breast cancer screening images utilizing weakly supervised
localization", Medical Image Analysis 68, 2021, arXiv 2002.07613. A global network computes a saliency
map of each class. A local network reads the six most salient regions at full resolution, attention weights
them, and both results are combined.

Published on the screening population: AUC 0.93 of malignancy by breast. In the published reader study (1,440
breasts) five models averaged reach AUROC 0.8812, one 0.8567.

It is part of the four-view package because it reads the same exams in the same way: crop, centre and window
are shared. Regions are chosen by comparing saliencies, which rounding could change, so this model always runs
in float32. The score of a breast is the mean of the scores of its views; the publication scores images.

Research use only.
"""

from lobule.methods.four_view.gmic.config import SETTABLE, Config
from lobule.methods.four_view.gmic.convert import convert
from lobule.methods.four_view.gmic.predictor import GmicPredictor, load

__all__ = ["SCAN_IGNORES", "SCAN_SETTINGS", "Config", "GmicPredictor", "convert", "load"]

SCAN_SETTINGS = SETTABLE
SCAN_IGNORES = ("stride", "mpp", "upsample")
"""Scan options that do not apply: the method itself decides how the views of an exam are cropped and cut."""
