"""Files in the layout of keras-applications, and the descriptors of their networks, without code of Lobule.

A network is built layer by layer as keras-applications describes it. Every layer draws random weights, which
go into the file, and is evaluated at once in float64, so that file and descriptors cannot drift apart.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Pixels = NDArray[np.uint8]


class KerasNet:
    """The layers of a network in the order of their creation, each with its named weights."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.layers: dict[str, dict[str, NDArray[np.float32]]] = {}

    def conv(
        self, x: Tensor, name: str, out: int, rows: int, columns: int, stride: int = 1, same: bool = False,
        bias: bool = True, suffixes: tuple[str, str] = ("W:0", "b:0"),
    ) -> Tensor:  # fmt: skip
        into = x.shape[1]
        kernel = self.rng.normal(0, (2 / (rows * columns * into)) ** 0.5, (rows, columns, into, out))
        self.layers[name] = {f"{name}_{suffixes[0]}": kernel.astype(np.float32)}
        offsets = None
        if bias:
            offsets = self.rng.normal(0, 0.1, out).astype(np.float32)
            self.layers[name][f"{name}_{suffixes[1]}"] = offsets
        weight = torch.from_numpy(kernel.astype(np.float32)).double().permute(3, 2, 0, 1)
        padding = (rows // 2, columns // 2) if same else 0
        return F.conv2d(
            x, weight, None if offsets is None else torch.tensor(offsets).double(), stride, padding
        )

    def norm(self, x: Tensor, name: str, gamma: bool, suffixes: tuple[str, ...]) -> Tensor:
        """A batch norm of Keras with its default epsilon, then a ReLU is up to the caller."""
        width = x.shape[1]
        values = [self.rng.uniform(0.8, 1.2, width)] if gamma else []
        values += [
            self.rng.normal(0, 0.1, width),
            self.rng.normal(0, 0.1, width),
            self.rng.uniform(0.8, 1.2, width),
        ]
        stored = [value.astype(np.float32) for value in values]
        self.layers[name] = {f"{name}{s}": v for s, v in zip(suffixes[-len(stored) :], stored, strict=True)}
        *scale, beta, mean, variance = (torch.from_numpy(v).double()[:, None, None] for v in stored)
        normalised = (x - mean) / torch.sqrt(variance + 1e-3)
        return normalised * scale[0] + beta if scale else normalised + beta

    def write(self, path: Path, order: list[str] | None = None) -> Path:
        names = order or list(self.layers)
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = np.array([name.encode() for name in names])
            file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"1.2.0"
            for name in names:
                group = file.create_group(name)
                weights = self.layers.get(name, {})
                group.attrs["weight_names"] = np.array([key.encode() for key in weights])
                for key, array in weights.items():
                    group[key] = array
        return path


def caffe(pixels: Pixels) -> Tensor:
    bgr = pixels[..., ::-1].astype(np.float64) - np.array([103.939, 116.779, 123.68])
    return torch.from_numpy(bgr.transpose(0, 3, 1, 2).copy())


def global_mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def vgg16(pixels: Pixels, seed: int = 1) -> tuple[KerasNet, Tensor]:
    net, x, descriptors = KerasNet(seed), caffe(pixels), []
    for block, (count, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for number in range(1, count + 1):
            x = torch.relu(
                net.conv(x, f"block{block}_conv{number}", width, 3, 3, same=True, suffixes=("W_1:0", "b_1:0"))
            )
        descriptors.append(global_mean(x))
        x = F.max_pool2d(x, 2, 2)
    return net, torch.cat(descriptors[1:], dim=1)


def resnet50(pixels: Pixels, seed: int = 2) -> tuple[KerasNet, Tensor]:
    """ResNet-50 as Keras had it until 2.1.3: its top-less form ends in a 7 x 7 average pool."""
    net = KerasNet(seed)
    names = ("_gamma:0", "_beta:0", "_running_mean:0", "_running_std:0")
    x = net.conv(F.pad(caffe(pixels), (3, 3, 3, 3)), "conv1", 64, 7, 7, stride=2)
    x = F.max_pool2d(torch.relu(net.norm(x, "bn_conv1", True, names)), 3, 2)
    for stage, (count, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for block in range(count):
            here = f"{stage}{'abcdef'[block]}_branch"
            stride = 2 if block == 0 and stage > 2 else 1
            y = torch.relu(
                net.norm(net.conv(x, f"res{here}2a", width, 1, 1, stride), f"bn{here}2a", True, names)
            )
            y = torch.relu(
                net.norm(net.conv(y, f"res{here}2b", width, 3, 3, same=True), f"bn{here}2b", True, names)
            )
            y = net.norm(net.conv(y, f"res{here}2c", 4 * width, 1, 1), f"bn{here}2c", True, names)
            if block == 0:
                x = net.norm(net.conv(x, f"res{here}1", 4 * width, 1, 1, stride), f"bn{here}1", True, names)
            x = torch.relu(x + y)
    return net, global_mean(F.avg_pool2d(x, 7, 7) if min(x.shape[2:]) >= 7 else x)


def inception_v3(pixels: Pixels, seed: int = 3) -> tuple[KerasNet, Tensor]:
    net = KerasNet(seed)
    count = 0
    x = torch.from_numpy((pixels.astype(np.float64) / 127.5 - 1).transpose(0, 3, 1, 2).copy())

    def unit(x: Tensor, out: int, rows: int, columns: int, stride: int = 1, same: bool = True) -> Tensor:
        nonlocal count
        count += 1
        kernel = ("/kernel:0", "")
        y = net.conv(x, f"conv2d_{count}", out, rows, columns, stride, same, bias=False, suffixes=kernel)
        names = ("/beta:0", "/moving_mean:0", "/moving_variance:0")
        return torch.relu(net.norm(y, f"batch_normalization_{count}", False, names))

    def pooled(x: Tensor, out: int) -> Tensor:
        return unit(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), out, 1, 1)

    x = unit(x, 32, 3, 3, 2, same=False)
    x = unit(unit(x, 32, 3, 3, same=False), 64, 3, 3)
    x = unit(unit(F.max_pool2d(x, 3, 2), 80, 1, 1, same=False), 192, 3, 3, same=False)
    x = F.max_pool2d(x, 3, 2)
    for width in (32, 64, 64):
        branches = [unit(x, 64, 1, 1), unit(unit(x, 48, 1, 1), 64, 5, 5)]
        branches.append(unit(unit(unit(x, 64, 1, 1), 96, 3, 3), 96, 3, 3))
        x = torch.cat([*branches, pooled(x, width)], 1)
    first = unit(x, 384, 3, 3, 2, same=False)
    second = unit(unit(unit(x, 64, 1, 1), 96, 3, 3), 96, 3, 3, 2, same=False)
    x = torch.cat([first, second, F.max_pool2d(x, 3, 2)], 1)
    for width in (128, 160, 160, 192):
        first = unit(x, 192, 1, 1)
        second = unit(unit(unit(x, width, 1, 1), width, 1, 7), 192, 7, 1)
        third = unit(unit(unit(x, width, 1, 1), width, 7, 1), width, 1, 7)
        third = unit(unit(third, width, 7, 1), 192, 1, 7)
        x = torch.cat([first, second, third, pooled(x, 192)], 1)
    first = unit(unit(x, 192, 1, 1), 320, 3, 3, 2, same=False)
    second = unit(unit(unit(x, 192, 1, 1), 192, 1, 7), 192, 7, 1)
    second = unit(second, 192, 3, 3, 2, same=False)
    x = torch.cat([first, second, F.max_pool2d(x, 3, 2)], 1)
    for _ in range(2):
        first, second = unit(x, 320, 1, 1), unit(x, 384, 1, 1)
        second = torch.cat([unit(second, 384, 1, 3), unit(second, 384, 3, 1)], 1)
        third = unit(unit(x, 448, 1, 1), 384, 3, 3)
        third = torch.cat([unit(third, 384, 1, 3), unit(third, 384, 3, 1)], 1)
        x = torch.cat([first, second, third, pooled(x, 192)], 1)
    assert count == 94
    return net, global_mean(x)
