"""Dense maps from a strided net, exactly: `densify` and the offset passes that it equals.

A net of stride S gives one cell in S × S pixels. Run it on α² inputs, shifted by S/α from one another, and
the interleaved cells D[α·h + i, α·w + j] = P_ij[h, w] are the dense map at stride S/α. Most of that work is
repeated: before the last log2(α) strided steps all passes see the same cells. `densify` does it once, in one
of two forms that share the net's weights and equal one another:

- "phases": each of those steps runs on its shifted inputs, and the results are stacked in the batch;
- "dilated": those steps lose their stride and all later steps are dilated, the à-trous form of the papers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lobule.errors import ConfigError, ModelError
from lobule.nets.receptive import Crop, NetGeometry, SpatialOp, cells_of, geometry_of, spatial_op, trace

Form = Literal["phases", "dilated"]


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


def densify(net: nn.Module, alpha: int, form: Form = "phases") -> DenseNet:
    """The unpadded net with the last log2(alpha) of its strided steps made dense, on the same weights.

    "phases" was at least as fast in every measurement. "dilated" contains only convolutions and pools, which
    exports need.
    """
    if form not in get_args(Form):
        raise ConfigError("there is no such dense form", expected=" or ".join(get_args(Form)), actual=form)
    geometry = geometry_of(net).dense(alpha)
    graph = trace(net)
    cells = cells_of(graph)
    phases: dict[int, int] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_module":
            continue
        before, after = cells[node.all_input_nodes[0]].stride, cells[node].stride
        plan = _Plan.of(before, after, geometry.stride)
        module = graph.get_submodule(str(node.target))
        dense_module = _in_phases(module, plan) if form == "phases" else _dilated(module, plan)
        if dense_module is not module:
            node.target = f"{node.name}_{form}"
            graph.add_submodule(node.target, dense_module)
        if form == "phases" and plan.factor > 1 and phases.setdefault(before, plan.factor) != plan.factor:
            raise ModelError("branches of the net take their strides differently", subject=node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return DenseNet(graph, geometry, [phases[stride] for stride in sorted(phases)])


@dataclass(frozen=True)
class _Plan:
    """How one step becomes dense: its dilation, the stride that remains and the factor that is removed."""

    dilation: int
    stride: int
    factor: int

    @classmethod
    def of(cls, before: int, after: int, dense_stride: int) -> _Plan:
        dense_before, dense_after = min(before, dense_stride), min(after, dense_stride)
        stride = dense_after // dense_before
        return cls(before // dense_before, stride, after // before // stride)


def _in_phases(module: nn.Module, plan: _Plan) -> nn.Module:
    op = spatial_op(module)
    return Phases(module, op, plan.factor, plan.stride) if op is not None and plan.factor > 1 else module


def _dilated(module: nn.Module, plan: _Plan) -> nn.Module:
    if isinstance(module, Crop):
        return Crop(module.before * plan.dilation, module.after * plan.dilation)
    op = spatial_op(module)
    if op is None or (plan.dilation == 1 and plan.factor == 1):
        return module
    if isinstance(module, nn.AvgPool2d):
        raise ModelError("an average pool cannot be dilated", remedy='Use densify(…, form="phases")')
    dilated = copy.copy(module)  # a shallow copy shares the parameters
    dilation = op.dilation * plan.dilation
    vars(dilated).update(dilation=(dilation, dilation), stride=(plan.stride, plan.stride))
    return dilated
