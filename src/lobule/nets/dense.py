"""Dense maps from a strided net, exactly: `densify` and the offset passes that it equals.

A net of stride S gives one cell in S × S pixels. Run it on α² inputs, shifted by S/α from one another, and
the interleaved cells D[α·h + i, α·w + j] = P_ij[h, w] are the dense map at stride S/α. Most of that work is
repeated: before the last log2(α) strided steps all passes see the same cells. `densify` does it once: each of
those steps runs on its shifted inputs, and the results are stacked in the batch. The à-trous form of the
papers, in which those steps lose their stride and later steps are dilated, was never faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lobule.errors import ModelError
from lobule.nets.receptive import NetGeometry, SpatialOp, cells_of, geometry_of, spatial_op, trace


class Phases(nn.Module):
    """A strided step on its factor² inputs, `shift` cells apart; (i, j) is the batch's outermost index."""

    def __init__(self, step: nn.Module, op: SpatialOp, factor: int, shift: int) -> None:
        super().__init__()
        self.step, self.op, self.factor, self.shift = step, op, factor, shift

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._reach(length) for length in x.shape[-2:])
        last = (self.factor - 1) * self.shift
        short = (0, max(0, width + last - x.shape[-1]), 0, max(0, height + last - x.shape[-2]))
        if any(short):  # the padding is behind every true cell and is removed at the end
            x = F.pad(x, short)
        shifts = range(0, last + 1, self.shift)
        return torch.cat([self.step(x[..., i : i + height, j : j + width]) for i in shifts for j in shifts])

    def _reach(self, length: int) -> int:
        """Number of input cells along a length that the unshifted step reads."""
        return (length - self.op.reach) // self.op.stride * self.op.stride + self.op.reach


class DenseNet(nn.Module):
    """A net whose map is alpha times finer; made by `densify`, for inference."""

    def __init__(self, body: nn.Module, geometry: NetGeometry, phases: Sequence[int]) -> None:
        super().__init__()
        self.body, self.geometry, self.phases = body, geometry, tuple(phases)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, rows, columns) at the dense stride."""
        y: Tensor = self.body(x)
        for factor in reversed(self.phases):
            y = _interleaved(y, factor)
        rows, columns = (self.geometry.out_size(length) for length in x.shape[-2:])
        return y[..., :rows, :columns]


def _interleaved(y: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = y.shape
    y = y.reshape(factor, factor, batch // factor**2, channels, height, width)
    return y.permute(2, 3, 4, 0, 5, 1).reshape(batch // factor**2, channels, height * factor, width * factor)


def densify(net: nn.Module, alpha: int) -> DenseNet:
    """The unpadded net with the last log2(alpha) of its strided steps made dense, on the same weights."""
    geometry = geometry_of(net).dense(alpha)
    graph = trace(net)
    cells = cells_of(graph)
    phases: dict[int, int] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_module":
            continue
        before, after = cells[node.all_input_nodes[0]].stride, cells[node].stride
        # Of the step's stride, `stride` remains and `factor` becomes phases.
        stride = min(after, geometry.stride) // min(before, geometry.stride)
        factor = after // before // stride
        module = graph.get_submodule(str(node.target))
        op = spatial_op(module)
        if op is None or factor == 1:
            continue
        node.target = f"{node.name}_phases"
        graph.add_submodule(node.target, Phases(module, op, factor, stride))
        if phases.setdefault(before, factor) != factor:
            raise ModelError("branches of the net take their strides differently", subject=node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return DenseNet(graph, geometry, [phases[stride] for stride in sorted(phases)])
