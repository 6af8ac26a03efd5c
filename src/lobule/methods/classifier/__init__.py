"""A plain tile classifier: any timm, torchvision or TorchScript model, scanned to a map of tile scores.

This method scans with existing models. The configuration format is that of WSInfer (Kaczmarzyk et al.: Open
and reusable deep learning for pathology with WSInfer and QuPath. npj Precision Oncology 8, 2024):
architecture, class names, patch size in pixels, spacing in µm/px and the transform of the input.

Deliberate differences from WSInfer:
- Tiles form a lattice anchored at (0, 0), so that a position is in the same tile in every scan.
- A TorchScript file can run code, so it is converted and loaded only with `--trust`.
"""

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.classifier.config import Config, of_wsinfer

if TYPE_CHECKING:
    from lobule.methods.classifier.predictor import TilePredictor, load

METHOD = Method(
    name="classifier",
    summary="Tile scores by any timm, torchvision or TorchScript model; converted, not trained.",
    config=Config,
    load=imported_when_called("lobule.methods.classifier.predictor", "load"),
)

__all__ = ["Config", "METHOD", "TilePredictor", "load", "of_wsinfer"]

__getattr__ = attributes_imported_when_used(__name__, {"TilePredictor": "predictor", "load": "predictor"})
