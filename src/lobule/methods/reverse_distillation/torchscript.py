"""A reverse distillation bundle as a TorchScript classifier of patches, for WSInfer, QuPath and others."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lobule.bundles import Bundle
from lobule.errors import ConfigError
from lobule.measures.calibration import Platt
from lobule.methods.reverse_distillation.predictor import PatchModel, load


class PatchClassifier(nn.Module):
    """Scores each patch separately, as the exact form does."""

    def __init__(self, model: PatchModel, fit: Platt) -> None:
        super().__init__()
        self.net, self.model, self.fit = model.net, model, fit

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 2) of normalised images (n, 3, input, input); softmax gives probabilities."""
        raw = self.model.scores_of_distances(self.net(images))
        margin = raw[:, None] * self.fit.slope + self.fit.intercept
        return torch.cat([torch.zeros_like(margin), margin], dim=1)


def torchscript_of(bundle: Bundle) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Return the traced network of a bundle, and its configuration in the form of WSInfer.

    Raises:
        ConfigError: The bundle has no calibration, without which an anomaly score is not a probability.
    """
    predictor = load(bundle)
    model, fit = predictor.model, predictor.calibration.patch
    if fit is None:
        raise ConfigError(
            "the bundle has no calibration of patches, so its scores are not probabilities of a class",
            subject=bundle.path,
            remedy="Train with validation patches of both classes; their scores are the calibration",
        )
    config = model.config
    classifier = PatchClassifier(model, fit).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript, which other programs read
        example = torch.zeros(2, 3, config.input, config.input)
        module: torch.jit.ScriptModule = torch.jit.trace(classifier, example)
    scaling = {"mean": list(model.scaling.mean), "std": list(model.scaling.std)}
    return module, {
        "spec_version": "1.0",
        "architecture": f"lobule-reverse-distillation-{config.teacher}",
        "num_classes": 2,
        "class_names": list(config.classes),
        "patch_size_pixels": config.patch,
        "spacing_um_px": config.mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": config.input}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": scaling},
        ],
    }
