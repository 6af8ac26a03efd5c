"""Breast-cancer screening from four mammographic views (Wu et al. 2019, arXiv 1903.08297).

"Deep Neural Networks Improve Radiologists' Performance in Breast Cancer Screening", IEEE TMI 39(4), 2020.
A patch network computes a benign and a malignant heatmap of each view. A four-view network reads the views
together with their heatmaps and scores each breast.

| on the screening population (published)                      | AUC of malignancy, by breast |
|---------------------------------------------------------------|------------------------------|
| images with heatmaps, five models averaged                    | 0.895                        |

In the published reader study (1,440 breasts) the mean AUROC of the 14 readers is 0.7788. The image-only form
of this model also reached 0.7788 there, in a run by other authors.

Windows and patch grids are random. In the published code one random stream runs through a whole list of
exams, so a score depends on the exams before it; `reading.compat=nyu` does the same. By default every exam
starts a new stream.

Heatmaps are computed in one of two ways. `exact` runs the patch network on every patch, as published. `fast`
runs it once over the whole view; a pixel then sees its real neighbours where a patch would end in padding. A
scan with `fast` also scores some patches exactly and reports the difference.

A bundle can contain several classifiers, whose scores are averaged, and image-wise classifiers for exams
that lack a view. The paper's side-wise and joint variants are included. Neither code nor weights of them were
published, so the tests check only their shapes.

`reading.quirks=reference`, the default, reproduces every number of the published code. `fixed` repairs three
errors in it:
- landmarks of left-pointing images are mirrored as `width - 1 - column`, not `width - column`;
- the window's right edge includes the outermost column of the breast;
- single images are mirrored to point right before they are cut into patches.
In both modes, all windows of a single image count; the published tool averages only the first two of every
batch. A view that shows no breast or is smaller than a patch fails its case, and the scan continues.

Training (`train.py`) follows the paper's stages: patches of outlined lesions, heatmaps of every exam, BI-RADS
categories, breast labels. In the BI-RADS stage each view predicts the category of the breast that it shows,
so this stage can precede every variant.

Defaults that differ from the paper:
- one classifier is trained; `members` of an ensemble are combined by `lobule weights convert`;
- `heatmaps` are an option, because they need outlined lesions; results store them in cells of `heatmap_cell`
  pixels, and `lobule heatmaps` writes them at full resolution;
- the patch network starts from random weights; `patch_weights=imagenet` starts from ImageNet's DenseNet-121;
- patches are flipped and turned by quarter turns; `patch_rotation` and `patch_resize` add other changes;
- the BI-RADS stage learns every category of the cohort; `birads_classes=published` learns the three of the
  paper;
- the area of malignancy chooses the weights; `select_by="mean of four"` is the mean of the four areas;
- `--precision auto` may choose bfloat16 on a GPU; published numbers are compared in float32;
- learning rates, steps, batch sizes and sampling shares are ours, since no document that we could read
  confirms them.

The published mean pooling learns little on generated exams. On the inputs and validation exams of one
training it reached an area of .76 for malignancy (.74 with sides exchanged), and the maximum .97: a lesion
is a few cells of a view, and a mean over all cells hides it. The exams that the paper used for training are
more than a hundred thousand. `architecture.pool=max` is therefore used for generated exams.

docs/papers.md lists every element of the paper beside the setting that implements it.

Research use only.
"""

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.four_view.config import KINDS, SCAN_SETTINGS, Config

if TYPE_CHECKING:
    from lobule.methods.four_view.bundle import convert, load, save
    from lobule.methods.four_view.predictor import FourViewPredictor

METHOD = Method(
    name="four_view",
    summary="Benign and malignant scores per breast from four mammogram views, with heatmaps.",
    config=Config,
    load=imported_when_called("lobule.methods.four_view.bundle", "load"),
    train=imported_when_called("lobule.methods.four_view.train", "train"),
    kinds=KINDS,
    scan_settings=SCAN_SETTINGS,
    unsupported=("refine", "stride", "slide_mpp", "upsample"),
    check_scan=lambda config, settings, options: config.set(settings),
)

__all__ = ["Config", "FourViewPredictor", "METHOD", "convert", "load", "save"]

__getattr__ = attributes_imported_when_used(
    __name__, {"convert": "bundle", "load": "bundle", "save": "bundle", "FourViewPredictor": "predictor"}
)
