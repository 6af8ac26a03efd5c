"""Deep features and gradient boosting for breast histology: Rakhlin et al., ICIAR 2018, arXiv 1802.00752.

Headline (400 training images of BACH, 10 folds; four classes normal, benign, in situ, invasive):

| set of descriptors | fold accuracy, mean ± std (%) |
|---|---|
| ResNet-50, crops of 400 px | 84.2 ± 4.2 |
| ResNet-50, crops of 650 px | 83.5 ± 5.2 |
| VGG-16, 400 px | 83.6 ± 2.9 |
| VGG-16, 650 px | 83.4 ± 4.4 |
| InceptionV3, 400 px | 83.0 ± 6.5 |
| InceptionV3, 650 px | 82.5 ± 5.5 |
| fusion of the six | 87.2 ± 2.6 |

Two classes (carcinoma or not): accuracy 93.8 ± 2.3 %, AUC 0.973.

Deliberate deviations
- Every (image, set, augmentation) has its own random generator; the original draws from one global
  generator, so that its features cannot be made again.
- Macenko's eigenvectors are sorted and their signs fixed, instead of taken in the order in which a general
  solver returns them. An image with hardly any tissue, or a single stain, is used as it is, with a flag.
- Descriptors that can be negative are pooled with a signed root, where the published root gives NaN.
- Folds are stratified, seeded and keep a patient's images together (`folds_by`); the authors ship unseeded
  folds of images, which `folds_file` reads.
- LightGBM runs deterministically.
- The paper's text counts 600 models, with crops at full scale; its released code and results are the 300
  at half scale, and so are these unless `full_scale` is set.
- ImageNet `weights` are torchvision's, with their scaling as `inputs`. `keras=true` builds the networks of
  Keras with BGR input, for weights that `lobule weights convert --method rakhlin` reads from Keras' files.
- A slide is classified window by window (1536 px at 0.42 µm/px, the height of a training image), each
  augmented once.

docs/papers.md lists every element of the paper beside the setting that implements it.

Research use only.
"""

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.rakhlin.config import KINDS, Config
from lobule.settings import type_hints

if TYPE_CHECKING:
    from lobule.methods.rakhlin.bach import write_bach
    from lobule.methods.rakhlin.bundle import load, save
    from lobule.methods.rakhlin.folds import split_for_training
    from lobule.methods.rakhlin.predictor import RakhlinPredictor

METHOD = Method(
    name="rakhlin",
    summary="Class probabilities of images, regions and slides, learned from one label per image.",
    config=Config,
    load=imported_when_called("lobule.methods.rakhlin.bundle", "load"),
    train=imported_when_called("lobule.methods.rakhlin.train", "train"),
    kinds=KINDS,
    split=imported_when_called("lobule.methods.rakhlin.folds", "split_for_training"),
    resolve=lambda config, cohort: config.resolved().with_classes(cohort.labels()),
    scan_settings=type_hints(
        Config, "scan_augmentations", "map_augmentations", "window", "stride", "tissue_share"
    ),
)

__all__ = ["Config", "METHOD", "RakhlinPredictor", "load", "save", "split_for_training", "write_bach"]

__getattr__ = attributes_imported_when_used(
    __name__,
    {
        "write_bach": "bach",
        "load": "bundle",
        "save": "bundle",
        "split_for_training": "folds",
        "RakhlinPredictor": "predictor",
    },
)
