"""Reverse distillation: tumour as what a student cannot copy, learned from about ten outlined slides.

He and Li: Whole-slide-imaging Cancer Metastases Detection and Localization with Limited Tumorous Data.
MIDL 2023, arXiv 2303.10342 (FW-RD). After Deng and Li: Anomaly Detection via Reverse Distillation from
One-Class Embedding. CVPR 2022, arXiv 2201.10703 (RD4AD).

    Camelyon16 test set, slide AUC
    FW-RD, ten outlined slides             0.9036
    plain reverse distillation             0.6068
    TCBB, SLFCD, HMS & MIT II (all slides) 0.8832, 0.9784, 0.9924

A frozen teacher gives three feature maps, and a student rebuilds them through a narrow bottleneck. It learns
to on normal tissue and, by the focal loss, not to on tumour: where the two differ, the score is high.

What differs from the paper, on purpose:
- Patches are drawn from the slides while training, never stored. Which ones is decided first, by the seed
  alone, and kept with the bundle; a smaller budget's slides are among a larger one's.
- Training patches are augmented, stains included: from a few hundred patches of a few slides, the student
  otherwise learns their stain. `augmentation=false` is as published. By choice, normal slides
  give normal patches too (`normal_slides`), and the teacher's maps are standardised (`standardise_teacher`).
- Exclusions inside outlines are honoured; slides that are not outlined exhaustively give no normal patches.
- The focal loss is clamped, so that a similarity of exactly 0 or 1 is no NaN; `safe=false` is as published.
- Scores are calibrated, and the threshold of the slide score is chosen, on validation slides; the published
  2.01 is `threshold=paper`.
- Patches of a neighbourhood are read once. `form=exact` evaluates every overlapping patch, as published;
  `form=shared` evaluates patches side by side and averages their maps over windows; the bundle says how near
  that comes.
- The last batch of an epoch runs on into the next.
"""

from lobule.methods.reverse_distillation.config import SCAN_SETTINGS, Config
from lobule.methods.reverse_distillation.convert import convert
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor, load, save
from lobule.methods.reverse_distillation.train import train
from lobule.training.fitting import TrainMachine

__all__ = ["SCAN_SETTINGS", "AnomalyPredictor", "Config", "TrainMachine", "convert", "load", "save", "train"]
