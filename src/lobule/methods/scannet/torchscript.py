"""A ScanNet bundle as a TorchScript classifier of patches, for WSInfer, QuPath and other programs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lobule.bundles import Bundle
from lobule.methods.scannet.predictor import load


class PatchClassifier(nn.Module):
    """Scores one patch per input: the net on the smallest patch that it sees completely."""

    def __init__(self, net: nn.Module, slope: float | None, intercept: float | None) -> None:
        super().__init__()
        self.net, self.slope, self.intercept = net, slope, intercept

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits (n, classes) of normalised patches (n, 3, side, side)."""
        logits: Tensor = self.net(patches).flatten(1)
        if self.slope is None or self.intercept is None:
            return logits
        # Of these logits, softmax gives the calibrated probability of the second class.
        margin = (logits[:, 1:] - logits[:, :1]) * self.slope + self.intercept
        return torch.cat([torch.zeros_like(margin), margin], dim=1)


def torchscript_of(bundle: Bundle) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Return the traced network of a bundle, and its configuration in the form of WSInfer."""
    model = load(bundle).model
    side = model.geometry.in_size(1)
    calibration = model.calibration
    fit = None if calibration is None else calibration.fit
    classifier = PatchClassifier(
        model.net, None if fit is None else fit.slope, None if fit is None else fit.intercept
    ).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript, which other programs read
        module: torch.jit.ScriptModule = torch.jit.trace(classifier, torch.zeros(2, 3, side, side))
    transform: list[dict[str, Any]] = [
        {"name": "Resize", "arguments": {"size": side}},
        {"name": "ToTensor"},
        {
            "name": "Normalize",
            "arguments": {"mean": list(model.scaling.mean), "std": list(model.scaling.std)},
        },
    ]
    config = {
        "spec_version": "1.0",
        "architecture": f"lobule-scannet-{model.config.trunk}",
        "num_classes": len(model.config.classes),
        "class_names": list(model.config.classes),
        "patch_size_pixels": side,
        "spacing_um_px": model.config.mpp,
        "transform": transform,
    }
    return module, config
