"""ImageNet weights of the three encoders as keras-applications published them: one HDF5 file per network.

A file has a group per layer with the attribute `weight_names`, and the datasets of these names, in the order
kernel, bias for a convolution and gamma, beta, mean, variance for a batch norm. (In the file of ResNet-50 the
variance is called `running_std`.) Kernels are stored as height, width, input, output.

Two conventions differ from torchvision's networks. The convolutions of Keras' ResNet-50 have biases before
their batch norms: a bias is the same as a mean that is smaller by the bias. The batch norms of InceptionV3
have no gamma, which then is 1; its layers are numbered in the order in which the network is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.errors import BundleError
from lobule.fingerprints import digest_of
from lobule.hdf5 import Group, item_at, names_in, numbers_at, open_hdf5

Array = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

PUBLISHED = {
    "resnet50": "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "inception_v3": "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "vgg16": "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
}
"""The published files: releases v0.2 (ResNet-50), v0.5 and v0.1 of fchollet/deep-learning-models."""

BLOCKS_OF_RESNET = (3, 4, 6, 3)
BLOCKS_OF_VGG = (2, 2, 3, 3, 3)


@dataclass(frozen=True)
class KerasWeights:
    """The weights of an encoder under the names of torchvision."""

    encoder: str
    tensors: dict[str, torch.Tensor]
    source_hash: str


@dataclass(frozen=True)
class _Layer:
    """A convolution of the network, and the batch norm behind it if it has one."""

    convolution: str
    norm: str | None
    keras_convolution: str
    keras_norm: str | None


def read_keras_weights(path: str | Path) -> KerasWeights:
    """Read a file of keras-applications, for ResNet-50, InceptionV3 or VGG-16, with or without its head.

    Raises:
        BundleError: The file contains another network.
        DamagedFile: The file is damaged, or refers to other files.
    """
    with open_hdf5(path) as file:
        root = item_at(file, "model_weights", path) or file
        names = names_in(root, "layer_names", path) or sorted(root.keys())
        encoder = _encoder_of(names, path)
        shapes = _shapes(encoder)
        tensors: dict[str, torch.Tensor] = {}
        for layer in _layers(encoder, names):
            arrays = _read_layer(root, layer, shapes, path)
            tensors.update({name: torch.from_numpy(array) for name, array in arrays.items()})
    with Path(path).open("rb") as stream:
        return KerasWeights(encoder, tensors, digest_of(stream))


def _encoder_of(names: list[str], path: str | Path) -> str:
    if "res2a_branch2a" in names and "bn_conv1" in names:
        return "resnet50"
    if "block5_conv3" in names and "block5_conv4" not in names:
        return "vgg16"
    if len(_numbered(names, "conv2d")) == len(_numbered(names, "batch_normalization")) == 94:
        return "inception_v3"
    newer = "conv2_block1_1_conv" in names
    raise BundleError(
        "the file does not contain the ResNet-50 of 2018, which has other strides and another first pool"
        if newer
        else "the file does not contain a network that Lobule can convert from Keras",
        subject=path,
        expected=", ".join(PUBLISHED.values()),
        actual=f"layers {', '.join(names[:4])}, …" if names else "no layers",
        remedy="Download one of these files from the releases of github.com/fchollet/deep-learning-models",
    )


def _numbered(names: list[str], kind: str) -> list[str]:
    """The layers of a kind in the order of their numbers; Keras leaves the number 0 out."""
    numbers = {name: match for name in names if (match := re.fullmatch(rf"{kind}(?:_(\d+))?", name))}
    return sorted(numbers, key=lambda name: int(numbers[name][1] or 0))


def _layers(encoder: str, names: list[str]) -> Iterator[_Layer]:
    if encoder == "vgg16":
        index = 0
        for block, count in enumerate(BLOCKS_OF_VGG, start=1):
            for number in range(1, count + 1):
                yield _Layer(f"features.{index}", None, f"block{block}_conv{number}", None)
                index += 2  # a ReLU follows each convolution
            index += 1  # and a pool each block
    elif encoder == "resnet50":
        yield _Layer("conv1", "bn1", "conv1", "bn_conv1")
        for stage, count in enumerate(BLOCKS_OF_RESNET, start=1):
            for block in range(count):
                here, there = f"layer{stage}.{block}", f"{stage + 1}{'abcdef'[block]}_branch"
                for number, letter in ((1, "a"), (2, "b"), (3, "c")):
                    keras = (f"res{there}2{letter}", f"bn{there}2{letter}")
                    yield _Layer(f"{here}.conv{number}", f"{here}.bn{number}", *keras)
                if block == 0:
                    yield _Layer(
                        f"{here}.downsample.0", f"{here}.downsample.1", f"res{there}1", f"bn{there}1"
                    )
    else:
        convolutions, norms = _numbered(names, "conv2d"), _numbered(names, "batch_normalization")
        for name, convolution, norm in zip(_inception_units(), convolutions, norms, strict=True):
            yield _Layer(f"{name}.conv", f"{name}.bn", convolution, norm)


def _inception_units() -> list[str]:
    """Torchvision's units of convolution and batch norm; it builds them in the same order as Keras."""
    return [name.removesuffix(".conv.weight") for name in _shapes("inception_v3") if "conv.weight" in name]


def _shapes(encoder: str) -> Shapes:
    """The shapes of all weights of torchvision's network."""
    from torchvision.models import get_model

    options = {"aux_logits": False, "init_weights": False} if encoder == "inception_v3" else {}
    with torch.device("meta"):
        network = get_model(encoder, weights=None, **options)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _read_layer(root: Group, layer: _Layer, shapes: Shapes, path: str | Path) -> dict[str, Array]:
    out, into, height, width = shapes[f"{layer.convolution}.weight"]
    kernel, *biases = _arrays(root, layer.keras_convolution, [(height, width, into, out), (out,)], path)
    tensors = {f"{layer.convolution}.weight": np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))}
    if layer.norm is None or layer.keras_norm is None:
        return tensors | {f"{layer.convolution}.bias": biases[0] if biases else np.zeros(out, np.float32)}
    statistics = _arrays(root, layer.keras_norm, [(out,)] * 4, path)
    if len(statistics) == 3:  # a batch norm without gamma
        statistics.insert(0, np.ones(out, np.float32))
    if len(statistics) != 4:
        raise _unexpected(layer.keras_norm, "gamma (optional), beta, mean and variance", path)
    if biases:
        statistics[2] = statistics[2] - biases[0]
    names = ("weight", "bias", "running_mean", "running_var")
    return tensors | {f"{layer.norm}.{name}": value for name, value in zip(names, statistics, strict=True)}


def _arrays(root: Group, layer: str, shapes: list[tuple[int, ...]], path: str | Path) -> list[Array]:
    """The arrays of a layer in their order; there may be fewer than shapes."""
    group = item_at(root, layer, path)
    names = names_in(group, "weight_names", path) if isinstance(group, Group) else []
    if not names or len(names) > len(shapes):
        raise _unexpected(layer, f"1 to {len(shapes)} datasets named in weight_names", path)
    return [
        numbers_at(group, name, path, shape=shape).astype(np.float32)
        for name, shape in zip(names, shapes, strict=False)
    ]


def _unexpected(layer: str, expected: str, path: str | Path) -> BundleError:
    return BundleError(
        f"the layer {layer} is not as keras-applications stores it", subject=path, expected=expected
    )
