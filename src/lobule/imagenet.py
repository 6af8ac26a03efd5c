"""ImageNet weights as torchvision publishes them, downloaded once into the cache of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lobule.errors import ConfigError

VERSION = "IMAGENET1K_V1"
"""The weights that the papers used. A later version of a network has other features."""


def imagenet_weights(name: str, option: str = "--set weights=FILE") -> Mapping[str, Tensor]:
    """Return the ImageNet weights of a network of torchvision. Nothing in the file is executed.

    Args:
        name: The network, such as "vgg16".
        option: How a user passes a file instead, for the message without a network.

    Raises:
        ConfigError: The network has no such weights, or they cannot be downloaded.
    """
    from torchvision.models import get_model_weights, list_models

    if name not in list_models() or VERSION not in get_model_weights(name).__members__:
        raise ConfigError(
            f"torchvision has no ImageNet weights of '{name}'",
            remedy=f"Pass a file with {option}, or start from random weights: --set weights=random",
        )
    weights = get_model_weights(name)[VERSION]
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # the download code raises many undocumented types
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConfigError(
            f"the ImageNet weights of {name} cannot be downloaded",
            subject=weights.url,
            actual=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy=f"Download this file on a machine with a network, and put it into {cache} or pass it with "
            f"{option}",
        ) from error
    return state
