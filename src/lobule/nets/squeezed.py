"""The ResNet-22 for inference: norms are folded, and repeated rows and columns are computed once.

A mammogram's background is one value, so that beside the breast whole columns are equal, and above and below
it whole rows. Where neighbouring slices of a map are equal, so are those of the next layer, but for a margin
as wide as its kernel. Each stage therefore computes one slice of what is equal, and its copies are put back
as far as the next stage needs them apart. The outputs are those of the trunk, to float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lobule.nets.four_view import Block, ResNet22

Run = tuple[int, int]
"""Half-open span of slices that are all equal."""
Layer = tuple[int, int, int]
"""Kernel, stride and padding along an axis."""


@dataclass(frozen=True)
class Axis:
    """One axis of a map: its length, the runs of equal slices, and how many of each run are omitted."""

    length: int
    runs: tuple[Run, ...]
    left_out: tuple[int, ...]

    def after(self, layers: Sequence[Layer]) -> Axis:
        """The axis of the map after some layers; omitted slices stay omitted."""
        length, runs, stride = self.length, list(self.runs), 1
        for kernel, step, padding in layers:
            length = (length + 2 * padding - kernel) // step + 1
            runs = [(-(-(a + padding) // step), (b + padding - kernel) // step + 1) for a, b in runs]
            stride *= step
        runs_after = [
            (run, out // stride) for run, out in zip(runs, self.left_out, strict=True) if run[1] > run[0]
        ]
        return Axis(length, tuple(run for run, _ in runs_after), tuple(out for _, out in runs_after))

    def squeezed_for(self, layers: Sequence[Layer]) -> Axis:
        """The axis with as many omitted slices as leave one slice of each run after these layers."""
        stride = 1
        for _, step, _ in layers:
            stride *= step
        left_out = []
        for run in self.runs:
            behind = Axis(self.length, (run,), (0,)).after(layers).runs
            left_out.append(stride * (behind[0][1] - behind[0][0] - 1) if behind else 0)
        return replace(self, left_out=tuple(left_out))

    def sources(self) -> NDArray[np.int64]:
        """For every slice, the index of an equal remaining slice; the last slices of a run are omitted."""
        source_slices = np.arange(self.length)
        for (_, end), out in zip(self.runs, self.left_out, strict=True):
            source_slices[end - out : end] = end - out - 1
        return source_slices

    def remaining_slices(self) -> NDArray[np.int64]:
        """The remaining slices, in order."""
        return np.unique(self.sources())

    def indices_in(self, other: Axis) -> NDArray[np.int64] | None:
        """Indices of the slices of this axis in a map that has those of `other`; None if all match."""
        available = other.remaining_slices()
        indices = np.searchsorted(available, other.sources()[self.remaining_slices()])
        return None if np.array_equal(indices, np.arange(len(available))) else indices

    def weights(self) -> NDArray[np.float32]:
        """Number of slices that each remaining slice represents."""
        counts = np.unique(self.sources(), return_counts=True)[1]
        return counts.astype(np.float32)


def axes_of(x: Tensor) -> tuple[Axis, Axis]:
    """Rows and columns of a batch (N, C, H, W), with the blank ones at its edges."""
    return _axis(x, 2), _axis(x, 3)


def _axis(x: Tensor, dim: int) -> Axis:
    """A slice is blank if each of its channels has one value, that of the edge."""
    length, reduced_dims = x.shape[dim], (0, 5 - dim)
    least, greatest = x.amin(reduced_dims), x.amax(reduced_dims)  # (C, length)
    blank = (least == greatest).all(dim=0)
    first = blank & (greatest == greatest[:, :1]).all(dim=0)
    last = blank & (greatest == greatest[:, -1:]).all(dim=0)
    if bool(first.all()):
        return Axis(length, ((0, length),), (0,))
    leading, trailing = int((~first).int().argmax()), int((~last).flip(0).int().argmax())
    runs = tuple(run for run in ((0, leading), (length - trailing, length)) if run[1] - run[0] > 1)
    return Axis(length, runs, (0,) * len(runs))


class Affine(nn.Module):
    """A batch norm at inference, followed by ReLU."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_var is not None and norm.running_mean is not None
        with torch.no_grad():
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            shift = norm.bias - norm.running_mean * scale
        self.register_buffer("scale", scale.detach().view(1, -1, 1, 1))
        self.register_buffer("shift", shift.detach().view(1, -1, 1, 1))
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale).relu_()


class PlainBlock(nn.Module):
    """A block whose second norm is part of its first convolution."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.affine = Affine(block.bn1)
        self.conv1 = fuse_conv_bn_eval(block.conv1, block.bn2)
        self.conv2, self.shortcut = block.conv2, block.downsample
        self.layers: tuple[Layer, ...] = ((3, block.conv1.stride[0], 1), (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        activated = self.affine(x)
        z: Tensor = self.conv2(self.conv1(activated).relu_())
        return z.add_(x if self.shortcut is None else self.shortcut(activated))


class Squeezed(nn.Module):
    """A trunk in evaluation mode: (N, channels, H, W) to its pooled map (N, 256)."""

    def __init__(self, trunk: ResNet22) -> None:
        super().__init__()
        trunk = trunk.eval()
        self.pool = trunk.pool
        self.first_conv, self.first_pool = trunk.first_conv, trunk.first_pool
        blocks = [block for stage in trunk.layer_list for block in stage]  # type: ignore[attr-defined]
        self.blocks = nn.ModuleList(PlainBlock(block) for block in blocks)
        self.final = Affine(trunk.final_bn)
        self.stem_layers: tuple[Layer, ...] = ((7, 2, int(trunk.first_conv.padding[0])), (3, 2, 0))

    def forward(self, x: Tensor) -> Tensor:
        z, axes = self._map(x)
        if self.pool == "max":  # omitted slices repeat remaining ones
            return z.float().amax(dim=(2, 3))
        weights = [torch.from_numpy(axis.weights()).to(z.device) for axis in axes]
        area = axes[0].length * axes[1].length
        return torch.einsum("nchw,h,w->nc", z.float(), *weights) / area

    def whole_map(self, x: Tensor) -> Tensor:
        """(N, 256, h, w), with every slice restored."""
        z, axes = self._map(x)
        full = tuple(replace(axis, left_out=(0,) * len(axis.runs)) for axis in axes)
        return _resqueezed(z, axes, (full[0], full[1]))

    def _map(self, x: Tensor) -> tuple[Tensor, tuple[Axis, Axis]]:
        axes = axes_of(x)
        axes = (axes[0].squeezed_for(self.stem_layers), axes[1].squeezed_for(self.stem_layers))
        z = self.first_pool(self.first_conv(_without_edges(x, axes)))
        axes = (axes[0].after(self.stem_layers), axes[1].after(self.stem_layers))
        for block in self.blocks:
            assert isinstance(block, PlainBlock)
            z, axes = _squeezed(z, axes, block.layers)
            z = block(z)
            axes = (axes[0].after(block.layers), axes[1].after(block.layers))
        return self.final(z), axes


def _without_edges(x: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    """The input without the omitted slices. Its runs are at the edges, so a view is enough."""
    for dim, axis in enumerate(axes, start=2):
        for (start, _), out in zip(axis.runs, axis.left_out, strict=True):
            x = x.narrow(dim, out if start == 0 else 0, x.shape[dim] - out)
    return x


def _squeezed(
    z: Tensor, axes: tuple[Axis, Axis], layers: Sequence[Layer]
) -> tuple[Tensor, tuple[Axis, Axis]]:
    target_axes = (axes[0].squeezed_for(layers), axes[1].squeezed_for(layers))
    return _resqueezed(z, axes, target_axes), target_axes


def _resqueezed(z: Tensor, axes: tuple[Axis, Axis], target_axes: tuple[Axis, Axis]) -> Tensor:
    pixels_first = z.permute(0, 2, 3, 1)  # indexing whole pixels keeps the map channels-last
    for dim, (axis, target) in enumerate(zip(axes, target_axes, strict=True), start=1):
        indices = target.indices_in(axis)
        if indices is not None:
            pixels_first = pixels_first.index_select(dim, torch.from_numpy(indices).to(z.device))
    return pixels_first.permute(0, 3, 1, 2)
