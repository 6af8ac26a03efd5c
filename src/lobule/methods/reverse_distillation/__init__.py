"""Reverse distillation: tumour detection learned from about ten outlined slides.

He and Li: Whole-slide-imaging Cancer Metastases Detection and Localization with Limited Tumorous Data.
MIDL 2023, arXiv 2303.10342 (FW-RD). After Deng and Li: Anomaly Detection via Reverse Distillation from
One-Class Embedding. CVPR 2022, arXiv 2201.10703 (RD4AD).

    Camelyon16 test set, slide AUC
    FW-RD, ten outlined slides             0.9036
    plain reverse distillation             0.6068
    TCBB, SLFCD, HMS & MIT II (all slides) 0.8832, 0.9784, 0.9924

A frozen teacher computes three feature maps, and a student rebuilds them through a narrow bottleneck. The
student learns to copy the teacher on normal tissue and, through the focal loss, not to copy it on tumour. The
score is high where the two differ.

Intentional differences from the paper:
- Patches are read from the slides during training and never stored. They are chosen before the training, from
  the seed alone, and listed in the bundle; `--coords` uses the authors' lists instead. The slides of a
  smaller budget are a subset of those of a larger one.
- Training patches are augmented, including their stains. Without that, a student that sees a few hundred
  patches of a few slides learns the stain of these slides. `augmentation=false` is the published form.
  Two options: normal slides also provide normal patches (`normal_slides`), and the teacher's maps are
  standardised (`standardise_teacher`).
- Excluded regions inside outlines are respected. Slides whose outlines are not exhaustive provide no normal
  patches.
- The focal loss is clamped, so that a similarity of exactly 0 or 1 does not give NaN. `safe=false` is the
  published form.
- Scores are calibrated, and the threshold of the slide score is chosen, on validation slides.
  `threshold=paper` uses the published 2.01.
- Overlapping patches are read once. `form=exact` evaluates every overlapping patch, as published.
  `form=shared` evaluates adjacent patches and averages their maps over windows. The bundle records how well
  the two agree.
- The last batch of an epoch continues into the next epoch, and the best epoch on validation patches is kept.

docs/papers.md lists every element of the paper beside the setting that implements it.
"""

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.reverse_distillation.config import Config
from lobule.methods.reverse_distillation.geometry import scan_config
from lobule.settings import type_hints

if TYPE_CHECKING:
    from lobule.methods.reverse_distillation.predictor import AnomalyPredictor, load, save

METHOD = Method(
    name="reverse_distillation",
    summary="An anomaly map of a slide, learned from about ten slides with outlined tumours.",
    config=Config,
    load=imported_when_called("lobule.methods.reverse_distillation.predictor", "load"),
    train=imported_when_called("lobule.methods.reverse_distillation.train", "train"),
    resolve=lambda config, cohort: config.of_loss(config.loss),
    scan_settings=type_hints(Config, "form", "mosaics", "threshold"),
    check_scan=lambda config, settings, options: scan_config(config, settings, options.get("stride")),
)

__all__ = ["AnomalyPredictor", "Config", "METHOD", "load", "save"]

__getattr__ = attributes_imported_when_used(
    __name__, {"AnomalyPredictor": "predictor", "load": "predictor", "save": "predictor"}
)
