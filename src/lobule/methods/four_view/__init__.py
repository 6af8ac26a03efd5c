"""Breast-cancer screening from four mammographic views (Wu et al. 2019, arXiv 1903.08297).

"Deep Neural Networks Improve Radiologists' Performance in Breast Cancer Screening", IEEE TMI 39(4), 2020.
A patch network paints a benign and a malignant heatmap over each view; a four-view network reads the views
with their heatmaps and scores each breast.

| on the screening population (published)                      | AUC of malignancy, by breast |
|---------------------------------------------------------------|------------------------------|
| images with heatmaps, five models averaged                    | 0.895                        |

In the published reader study (1,440 breasts) the mean of 14 readers is AUROC 0.7788, and the image-only form
of this model 0.7788 as others ran it.

Windows and patch grids are random. As published, one stream runs through a whole list of exams, so that a
score depends on the exams before it; that is `compat="nyu"`. By default every exam begins anew.

What differs from the published code besides, and only with `quirks="fixed"`; `quirks="reference"`, the
default, keeps every number:
- landmarks of left-pointing images are mirrored as `width - 1 - column`, not `width - column`;
- the window's right edge keeps the outermost column of the breast instead of cutting it;
- single images are brought into the right-pointing frame before they are cut into patches;
- all epochs of a single image count, whatever the batch size.
In either case a view without a breast, or one smaller than a patch, is an error of its case alone.

Research use only.
"""

from lobule.methods.four_view.config import Config
from lobule.methods.four_view.convert import convert
from lobule.methods.four_view.predictor import FourViewPredictor, load

__all__ = ["Config", "FourViewPredictor", "convert", "load"]
