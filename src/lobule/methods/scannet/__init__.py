"""ScanNet: dense tumour maps of whole slides by an unpadded net.

Lin, Chen, Dou, Wang, Qin and Heng: ScanNet: A Fast and Dense Scanning Framework for Metastatic Breast Cancer
Detection from Whole-Slide Images. WACV 2018, arXiv 1707.09597; Fast ScanNet, IEEE TMI 38(8), 2019.

    Camelyon16 test set                        FROC     AUC
    CULab III, the group's challenge entry     0.703    0.940    (JAMA 2017, table 2)
    Fast ScanNet-16, as later papers quote it  0.853    0.988    (second hand)

Intentional differences from the paper:
- The dense map is computed in one pass of a net whose last strides are distributed over phases, instead of α²
  passes with offsets. Tests verify that both give the same map up to float rounding.
- A map cell is scored by the window that is centred on it, so that scores and positions agree.
- The trunk is any unpadded net of `nets.backbones`; the paper's VGG-16 is the default.
- Tissue is detected by stain. `--tissue-method camelyon` uses Otsu thresholds, as in the paper.
- Batch size, steps, augmentation strengths and the pool of hard negatives are ours; see the defaults of
  `Config`. In up to two further rounds, half of the normal patches are hard negatives. They keep a distance
  from tumour outlines (`hard_margin`).
- The slide score is the highest cell (of means of 3 × 3 cells with `mean_cells=3`) or, with
  `slide_score=forest`, a random forest on 31 features of the map. The trees weight both classes equally
  (`class_weight="balanced"` of scikit-learn). The forest is trained on maps of the net's training slides,
  which are cleaner than those of new slides. The recorded area under the curve comes from forests that were
  trained without the slide's patient.
- A fifth of the patients is held out for validation if the cohort has no validation split. Scores are
  calibrated on the validation slides, and the `threshold` for findings is chosen there.
- Threads, not processes, read patches by default, because the readers release Python's lock; `--processes`
  uses processes. Each sample, not each worker, has a separate random generator, so that results do not depend
  on the number of workers.

docs/papers.md lists every element of the paper beside the setting that implements it.
"""

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.scannet.config import Config, check_scan
from lobule.settings import type_hints

if TYPE_CHECKING:
    from lobule.methods.scannet.predictor import DensePredictor, load, save

METHOD = Method(
    name="scannet",
    summary="A dense tumour map of a slide, learned from tumours outlined on many slides.",
    config=Config,
    load=imported_when_called("lobule.methods.scannet.predictor", "load"),
    train=imported_when_called("lobule.methods.scannet.train", "train"),
    resolve=lambda config, cohort: config.resolved(),
    scan_settings=type_hints(
        Config,
        "findings",
        "threshold",
        "opening",
        "min_cells",
        "nms_radius",
        "refine_above",
        "slide_score",
        "mean_cells",
    ),
    unsupported=(),
    check_scan=check_scan,
)

__all__ = ["Config", "DensePredictor", "METHOD", "load", "save"]

__getattr__ = attributes_imported_when_used(
    __name__, {"DensePredictor": "predictor", "load": "predictor", "save": "predictor"}
)
