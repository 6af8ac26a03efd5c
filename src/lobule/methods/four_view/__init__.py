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

Heatmaps are painted `exact`, patch by patch, or `fast`, from one look of the patch network at each view:
cells in the middle then see their neighbours where a patch sees its own edge. A scan that paints fast scores
some patches both ways and tells the difference. A bundle may hold several classifiers, whose scores are
averaged, and image-wise ones for the exams that lack a view. The paper's side-wise and joint variants are
here too; no code or weights of them were published, so nothing but their shape is tested.

What differs from the published code besides, and only with `quirks="fixed"`; `quirks="reference"`, the
default, keeps every number:
- landmarks of left-pointing images are mirrored as `width - 1 - column`, not `width - column`;
- the window's right edge keeps the outermost column of the breast instead of cutting it;
- single images are brought into the right-pointing frame before they are cut into patches;
- all epochs of a single image count, whatever the batch size.
In either case a view without a breast, or one smaller than a patch, is an error of its case alone.

Training (`train.py`) follows the paper's stages: patches of outlined lesions, heatmaps of every exam, BI-RADS
categories, breast labels. Rates, steps, batches and the shares of what is drawn are ours. In the BI-RADS
stage each view grades its own breast, so that every variant can begin with it.

Research use only.
"""

from lobule.methods.four_view.config import SETTABLE, Config
from lobule.methods.four_view.convert import convert
from lobule.methods.four_view.predictor import FourViewPredictor, load, save
from lobule.methods.four_view.train import KINDS, train
from lobule.training.fitting import TrainMachine

__all__ = [
    "KINDS",
    "SCAN_IGNORES",
    "SCAN_SETTINGS",
    "Config",
    "FourViewPredictor",
    "TrainMachine",
    "convert",
    "load",
    "save",
    "train",
]

SCAN_SETTINGS = SETTABLE
SCAN_IGNORES = ("stride", "mpp", "upsample")
"""An exam's views are cropped and cut as the network wants them."""
