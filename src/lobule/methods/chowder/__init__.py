"""CHOWDER: a slide's label from its tiles' features (Courtiol et al., 2018, arXiv 1802.02212).

Headline on Camelyon16 (ImageNet ResNet-50 features; as recalled, no digit confirmed): CHOWDER with R = 5
reaches an AUC of 0.858 on the competition's test slides and 0.903 in cross-validation; WELDON with R = 10,
0.670 and 0.832; MeanPool 0.530 and 0.802; MaxPool 0.655 and 0.749. Independent re-implementations on the
same features land between 0.80 and 0.86, with a spread of about 0.05 between seeds.

docs/papers.md lists every element of the paper beside the setting that implements it.

Deliberate deviations
- ImageNet's ResNet-50 is torchvision's first version (IMAGENET1K_V1). Colours are not normalised, as in the
  paper; `lobule features --stains macenko` normalises them, as a public re-implementation describes. Tissue
  is detected by stain; `--tissue-method camelyon` is Otsu, as in the paper.
- The lowest R scores are sorted in ascending order; published code uses one descending sort. Set
  `bottom="descending"` for weights that were trained with it.
- Padding is never selected. A bag of fewer than R tiles fills its empty slots with zeros. A bag without tiles
  has no prediction. Of equal scores, the tile with the lower index is selected.
- Scores are computed in float32 even where the rest runs in half precision.
- A map is drawn only after its orientation is tested, because the sign of a tile score is arbitrary.
- Tiles form a grid over all tissue. Each member is trained on up to 1000 randomly chosen tiles per slide; a
  scan scores all tiles.
- With a validation split (or a held-out fifth of the patients) each member keeps the weights of its best
  epoch. The paper trains on all slides for 30 epochs and keeps the last weights; `patience=0 --val none` does
  the same.

The comparison models are trained by the same loop. Each is a preset of the method; `--set model=NAME` with
the method chowder selects the same models.
- `chowder_modern`: the later version by its authors (2023): a hidden layer for tile scores, and R = 10
- `weldon`: WELDON (Durand, Thome and Cord, CVPR 2016), the mean of the highest and lowest linear scores
- `mean_pool`: logistic regression on the mean of the features
- `max_features`: logistic regression on the element-wise maximum of the features, as far as known the MaxPool
  baseline of the paper
- `max_pool`: the highest linear score of a tile, as in later papers
- `abmil`: gated attention (Ilse, Tomczak and Welling, ICML 2018)
- `transmil`: TransMIL (Shao et al., NeurIPS 2021)
"""

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.chowder.config import Config
from lobule.settings import type_hints

if TYPE_CHECKING:
    from lobule.methods.chowder.predictor import BagPredictor, load

METHOD = Method(
    name="chowder",
    summary="A slide's score from the features of its tiles, learned from one label per slide.",
    config=Config,
    load=imported_when_called("lobule.methods.chowder.predictor", "load"),
    train=imported_when_called("lobule.methods.chowder.train", "train"),
    resolve=lambda config, cohort: config.with_features(),
    scan_settings=type_hints(Config, "features"),
    unsupported=("refine", "stride"),
    presets={
        "chowder_modern": {"model": "modern"},
        "weldon": {"model": "weldon"},
        "mean_pool": {"model": "mean"},
        "max_pool": {"model": "max"},
        "max_features": {"model": "max_features"},
        "abmil": {"model": "abmil"},
        "transmil": {"model": "transmil"},
    },
)

__all__ = ["BagPredictor", "Config", "METHOD", "load"]

__getattr__ = attributes_imported_when_used(__name__, {"BagPredictor": "predictor", "load": "predictor"})
