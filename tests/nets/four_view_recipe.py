"""Weights made from names alone, so that networks can be compared without any checkpoint."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import torch

from lobule.mammograms.published.windows import standardise
from lobule.nets.four_view import ImageWise, ViewWise, patch_densenet
from lobule.nets.gmic import Gmic

GMIC_GAIN = {"ds_net": 0.8, "dn_resnet": 1.6, "mil_attn_w": 16.0, "fusion_dnn": 0.02}

NETS = {
    "view-image": lambda: ViewWise(1),
    "view-heatmaps": lambda: ViewWise(3),
    "image-image": lambda: ImageWise(1),
    "image-heatmaps": lambda: ImageWise(3),
    "patch": patch_densenet,
    "gmic": Gmic,
}


def made_tensor(tag: str, salt: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = zlib.crc32(f"{salt}|{tag}|{key}".encode())
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(size=shape)
    last = key.rpartition(".")[2]
    if last == "running_var":
        value = 0.5 + 0.5 * np.abs(n)
    elif last in ("running_mean", "bias"):
        value = 0.1 * n
    elif len(shape) == 1:
        value = 1 + 0.1 * n
    else:
        gain = {"patch": 1.5, "gmic": GMIC_GAIN.get(key.partition(".")[0], 1.0)}.get(tag, 1.0)
        value = n * np.sqrt(gain / np.prod(shape[1:]))
    return value.astype(np.float32)


def made_net(tag: str, salt: str) -> torch.nn.Module:
    net = NETS[tag]().eval()
    state = {}
    for key, tensor in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros_like(tensor)
        else:
            state[key] = torch.from_numpy(made_tensor(tag, salt, key, tuple(tensor.shape)))
    net.load_state_dict(state)
    return net


def hash_of(net: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def synthetic_heatmaps(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(benign, malignant) in the stored, cropped frame."""
    y, x = np.arange(shape[0])[:, None] // 16, np.arange(shape[1])[None, :] // 16
    benign = (((7 * y + 13 * x) % 101) / 101).astype(np.float32)
    malignant = (((3 * y + 5 * x) % 97) / 97).astype(np.float32)
    return benign, malignant


# -- the published pipeline, step by step -------------------------------------------------------------------

MALIGNANT, BENIGN = 0, 1
"""Indices of these classes among the patch network's four."""


def patch_pixels(image: np.ndarray) -> np.ndarray:
    """Standardise the whole view in float64. Patches are cut from it and cast to float32."""
    return standardise(image, np.float64)


def cut_patch(standardised: np.ndarray, corner: tuple[int, int], patch: int = 256) -> np.ndarray:
    """Cut a patch (3, patch, patch) with three equal channels."""
    row, column = corner
    grey = standardised[row : row + patch, column : column + patch].astype(np.float32)
    return np.broadcast_to(grey, (3, patch, patch))


def epochs_averaged(epochs: int, batch: int) -> list[int]:
    """Return the epochs of a single image that count in the published code: two of every batch."""
    return [epoch for epoch in range(epochs) if epoch % batch < 2]
