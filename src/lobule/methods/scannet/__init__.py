"""ScanNet: dense tumour maps of whole slides by an unpadded net.

Lin, Chen, Dou, Wang, Qin and Heng: ScanNet: A Fast and Dense Scanning Framework for Metastatic Breast Cancer
Detection from Whole-Slide Images. WACV 2018, arXiv 1707.09597; Fast ScanNet, IEEE TMI 38(8), 2019.

    Camelyon16 test set                        FROC     AUC
    CULab III, the group's challenge entry     0.703    0.940    (JAMA 2017, table 2)
    Fast ScanNet-16, as later papers quote it  0.853    0.988    (second hand)

What differs from the paper, on purpose:
- The dense map is not made of α² offset passes but of one pass of a net whose last strides are spread over
  phases; the two are equal to float rounding, and the tests say so.
- A map cell is scored by the window centred on it, so a cell (r, c) is where it says it is.
- The trunk is any unpadded net of `nets.backbones`; the paper's VGG-16 is the default.
- The paper leaves rates, batch, steps, augmentation strengths and the pool of hard negatives open; `Config`
  holds ours. Hard places are half of the normal patches in up to two further rounds.
- The slide score is the highest cell, or (`slide_score=forest`) a random forest over 31 features of the map.
  It learns from maps of the slides that trained the net, which are cleaner than those of new ones; the area
  under the curve that is recorded comes from forests that saw none of a slide's patient.
- Scores are calibrated on the validation slides, and the threshold for findings is chosen there.
- Each sample has a generator of its own, not each worker, so that the number of workers changes nothing.
"""

from lobule.methods.scannet.config import Config
from lobule.methods.scannet.predictor import DensePredictor, load, save
from lobule.methods.scannet.train import train
from lobule.training.fitting import TrainMachine

SCAN_SETTINGS = ("findings", "threshold", "opening", "min_cells", "nms_radius", "refine_above", "slide_score")
"""How a map is read, which a scan may decide anew."""

REFINES = True

__all__ = ["REFINES", "SCAN_SETTINGS", "Config", "DensePredictor", "TrainMachine", "load", "save", "train"]
