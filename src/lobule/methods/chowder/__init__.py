"""CHOWDER: a slide's label from its tiles' features (Courtiol et al., 2018, arXiv 1802.02212).

Headline on Camelyon16 (ImageNet ResNet-50 features; as recalled, no digit confirmed): CHOWDER with R = 5
reaches an AUC of 0.858 on the competition's test slides and 0.903 in cross-validation; WELDON with R = 10,
0.670 and 0.832; MeanPool 0.530 and 0.802; MaxPool 0.655 and 0.749. Independent re-implementations on the
same features land between 0.80 and 0.86, with a spread of about 0.05 between seeds.

Deliberate deviations
- The bottom scores stand minimum first; published code keeps one descending sort. `bottom="descending"` for
  weights that expect it.
- Padding never competes; a bag of fewer than R tiles fills its empty slots with zeros; a bag without tiles
  has no prediction. Of equal scores the lower tile index is taken.
- Scores are computed in float32 even where the rest runs in half precision.
- A map is drawn only after its orientation is tested, because the sign of a tile score is arbitrary.
- Tiles lie on a grid over all tissue; up to 1000 a slide are drawn for each member, all of them are scored.
- With a validation split (or a fifth of the patients, held out) each member keeps the epoch that told it
  best; the paper trains 30 epochs and keeps the last. `patience=0 --val none` is the paper's way.

The models it is compared with learn by the same loop: WELDON, mean and max pooling, gated attention,
TransMIL, and the later form of CHOWDER by its authors. Each is an entry of `METHODS`, or `--set model=NAME`
of this one.
"""

from lobule.methods.chowder.config import Config
from lobule.methods.chowder.predictor import BagPredictor, load
from lobule.methods.chowder.train import KINDS, train
from lobule.training.fitting import TrainMachine

SCAN_SETTINGS = ("features",)
"""What a scan may set: a folder of features to read in place of the slides."""

__all__ = ["KINDS", "SCAN_SETTINGS", "BagPredictor", "Config", "TrainMachine", "load", "train"]
