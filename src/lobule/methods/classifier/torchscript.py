"""A tile classifier as TorchScript, for WSInfer, QuPath and other programs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lobule.bundles import Bundle
from lobule.errors import ConfigError
from lobule.methods.classifier.config import Config
from lobule.methods.classifier.predictor import load


class LogProbabilities(nn.Module):
    """The logarithm of the output of a network that returns probabilities, of which softmax restores them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.net(images)
        return probabilities.clamp_min(1e-30).log()


def torchscript_of(bundle: Bundle) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Return the traced network of a bundle, and its configuration in the form of WSInfer.

    Raises:
        ConfigError: The bundle is TorchScript already, or its outputs are not those of one softmax.
    """
    config = Config.from_dict(bundle.config)
    if config.architecture == "torchscript":
        raise ConfigError(
            "the bundle contains a TorchScript file already", subject=bundle.path,
            remedy="Use its file model.pt, if you know where it came from",
        )  # fmt: skip
    if config.activation == "sigmoid" and len(config.classes) > 1:
        raise ConfigError(
            "the classes of the bundle do not exclude each other, which the layout of WSInfer cannot express",
            subject=bundle.path, expected="one class, or an activation of softmax", actual="sigmoid",
        )  # fmt: skip
    net = load(bundle).model.net
    classifier = (LogProbabilities(net) if config.activation == "none" else net).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript, which other programs read
        example = torch.zeros(2, 3, config.input, config.input)
        module: torch.jit.ScriptModule = torch.jit.trace(classifier, example)
    return module, {
        "spec_version": "1.0",
        "architecture": config.architecture,
        "num_classes": len(config.classes),
        "class_names": list(config.classes),
        "patch_size_pixels": config.tile,
        "spacing_um_px": config.mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": config.input}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(config.mean), "std": list(config.std)}},
        ],
    }
