"""Probe: a light head on the dense tokens of an encoder, learned from tokens under outlines.

This is not a published system but the modern comparator of ScanNet. The patch tokens of a vision transformer
form a grid of 14 or 16 px, and so do the middle maps of a convolutional network. A logistic regression, the
nearest neighbours or small boosted trees score every token, so a map has one cell per token: 7 to 8 µm at
0.5 µm/px. Training needs seconds to minutes, because the encoder stays as it is.

    settings   encoder, head, mpp, overlap, tokens
    result     a dense tumour map, findings, and the highest smoothed score as the slide score

Choices that are ours:

- A transformer reads windows at the resolution of the scan. The resizing and cutting of its authors, which
  belongs to single tiles, is left out.
- Windows overlap by 36 % of their side, and a cell is the mean of all windows that cover it, with Hann
  weights. This hides the borders of windows, where tokens see less context.
- Findings and the slide score come from the map after a Gaussian of two cells, since single tokens are noisy.

Research use only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lobule.methods import Method, attributes_imported_when_used, imported_when_called
from lobule.methods.probe.config import Config

if TYPE_CHECKING:
    from lobule.methods.probe.model import ProbeModel
    from lobule.methods.probe.predictor import ProbePredictor, load

METHOD = Method(
    name="probe",
    summary="A dense map from a light head on tokens of an encoder, learned from outlined slides.",
    config=Config,
    load=imported_when_called("lobule.methods.probe.predictor", "load"),
    train=imported_when_called("lobule.methods.probe.train", "train"),
    unsupported=("refine", "stride"),
)

__all__ = ["Config", "METHOD", "ProbeModel", "ProbePredictor", "load"]

__getattr__ = attributes_imported_when_used(
    __name__, {"ProbeModel": "model", "ProbePredictor": "predictor", "load": "predictor"}
)
