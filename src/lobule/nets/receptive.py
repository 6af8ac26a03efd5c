"""What an output cell of an unpadded net sees: receptive field, stride and positions, derived from the net.

A net is traced into its graph and walked step by step; nothing is typed in. Only steps whose geometry is
exact are known here, so a net with padding, or with a step that looks at the whole image, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lobule.errors import ModelError
from lobule.nets.averaged import SamePadding


@dataclass(frozen=True)
class NetGeometry:
    """Positions of the output cells of a network on its input, the same along x and y, in input pixels.

    Output cell i sees pixels [start + i·stride, start + i·stride + receptive_field).
    """

    receptive_field: int
    stride: int
    start: int = 0
    extent: int = 0
    """The smallest input that yields one cell; the receptive field unless branches are cropped outside it."""

    def __post_init__(self) -> None:
        if self.extent < self.start + self.receptive_field:
            object.__setattr__(self, "extent", self.start + self.receptive_field)

    @property
    def first_centre(self) -> float:
        """The centre of the first cell's window, measured on pixel edges."""
        return self.start + self.receptive_field / 2

    def out_size(self, in_px: int) -> int:
        """Number of cells along an input of this length; 0 if it is too small."""
        return max(0, (in_px - self.extent) // self.stride + 1)

    def in_size(self, cells: int) -> int:
        """The smallest input that yields this number of cells."""
        return self.extent + self.stride * (cells - 1)

    def dense(self, alpha: int) -> NetGeometry:
        """The geometry of the dense map, whose stride is alpha times finer."""
        if alpha < 1 or self.stride % alpha or alpha & (alpha - 1):
            raise ModelError(
                "there is no dense map at this alpha",
                expected=f"a power of two that divides the net's stride of {self.stride}",
                actual=str(alpha),
            )
        return replace(self, stride=self.stride // alpha)


class Crop(nn.Module):
    """Remove cells on every side, `before` at left and top, so that one branch is aligned with another."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return x[..., self.before : height - self.after, self.before : width - self.after]


@dataclass(frozen=True)
class SpatialOp:
    """Kernel, stride, padding and dilation of one operation, alike along x and y."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    ceil: bool = False

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) + 1


def spatial_op(module: nn.Module) -> SpatialOp | None:
    """The geometry of a convolution or pool; None for modules that work on each cell alone."""
    if isinstance(module, nn.Conv2d):
        op = SpatialOp(
            _square(module.kernel_size, module),
            _square(module.stride, module),
            0,
            _square(module.dilation, module),
        )
        if module.padding == "same":
            return replace(op, padding=(op.reach - 1) // 2)
        return op if module.padding == "valid" else replace(op, padding=_square(module.padding, module))
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        kernel, dilation = _square(module.kernel_size, module), getattr(module, "dilation", 1)
        stride = _square(module.stride or kernel, module)
        padding = _square(module.padding, module)
        return SpatialOp(kernel, stride, padding, _square(dilation, module), module.ceil_mode)
    return None


def _square(value: Any, module: nn.Module) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) == 1:
        return int(value[0])
    raise ModelError("a step of the net is not the same along x and y", subject=module)


POINTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Dropout,
    nn.Dropout2d,
)
POINTWISE_CALLS: frozenset[Any] = frozenset(
    {F.relu, F.relu_, torch.relu, F.gelu, F.silu, F.dropout, torch.sigmoid, torch.tanh}
    | {"relu", "relu_", "sigmoid", "tanh", "contiguous"}
)
MERGES: frozenset[Any] = frozenset(
    {operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.mul, torch.cat}
    | {"add", "add_", "mul", "mul_"}
)


@dataclass(frozen=True)
class Cells:
    """Positions of the cells of one step on the input; `shift` is the offset caused by removed padding."""

    stride: int = 1
    start: int = 0
    window: int = 1
    extent: int = 1
    shift: int = 0

    def after(self, op: SpatialOp, removed_padding: int = 0) -> Cells:
        grown = (op.reach - 1) * self.stride
        return Cells(
            self.stride * op.stride,
            self.start,
            self.window + grown,
            self.extent + grown,
            self.shift + removed_padding * self.stride,
        )

    def cropped(self, crop: Crop) -> Cells:
        before, after = crop.before * self.stride, crop.after * self.stride
        return replace(
            self, start=self.start + before, extent=self.extent + before + after, shift=self.shift + before
        )

    def union(self, other: Cells) -> Cells:
        start = min(self.start, other.start)
        end = max(self.start + self.window, other.start + other.window)
        return replace(self, start=start, window=end - start)


class SpatialTracer(fx.Tracer):
    """Trace a network down to the modules with known geometry; `opaque` modules are not entered."""

    def __init__(self, opaque: Sequence[str] = ()) -> None:
        super().__init__()
        self.opaque = frozenset(opaque)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_known = (
            isinstance(m, (Crop, SamePadding, *POINTWISE_MODULES)) or module_qualified_name in self.opaque
        )
        return is_known or super().is_leaf_module(m, module_qualified_name)


def trace(net: nn.Module, opaque: Sequence[str] = ()) -> fx.GraphModule:
    """The net as a graph that shares its modules and parameters, with the same state-dict keys."""
    tracer = SpatialTracer(opaque)
    try:
        return fx.GraphModule(net, tracer.trace(net), type(net).__name__)
    except fx.proxy.TraceError as error:
        raise ModelError(
            "the steps of this net depend on its input, so its geometry cannot be derived",
            subject=type(net).__name__,
            actual=str(error),
        ) from error
    finally:
        # A tracer is part of reference cycles, which would keep the weights until garbage is collected.
        vars(tracer).clear()


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a step of a graph calls; None for other steps."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_merge(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in MERGES


class OutOfLine(ModelError):
    """Branches of a network that are not aligned where they meet; `unpad` repairs this by cropping."""

    def __init__(self, meeting: fx.Node, cells: dict[fx.Node, Cells]) -> None:
        self.meeting, self.cells = meeting, cells
        super().__init__(
            "branches of the net are not aligned where they meet", subject=meeting, remedy="Use unpad() first"
        )


def cells_of(graph: fx.GraphModule, removed_padding: dict[str, int] | None = None) -> dict[fx.Node, Cells]:
    """The cells of every node; shifts are compared only where the removed padding is known."""
    removed = removed_padding or {}
    cells_of_node: dict[fx.Node, Cells] = {}
    for node in graph.graph.nodes:
        operands = [cells_of_node[other] for other in node.all_input_nodes if other in cells_of_node]
        if node.op == "placeholder":
            cells_of_node[node] = Cells()
        elif node.op == "call_module":
            cells_of_node[node] = _after_module(
                graph.get_submodule(str(node.target)), operands, removed, node
            )
        elif node.op == "output" or (node.op.startswith("call") and node.target in POINTWISE_CALLS):
            cells_of_node[node] = operands[0]
        elif is_merge(node):
            _check_channels(node)
            shifts = {cells.shift for cells in operands} if removed_padding is not None else {0}
            if len({(cells.stride, cells.extent) for cells in operands}) > 1 or len(shifts) > 1:
                raise OutOfLine(node, cells_of_node)
            cells_of_node[node] = reduce(Cells.union, operands)
        elif node.op != "get_attr":
            raise ModelError(
                "a step of the net whose geometry is not known", subject=f"{node.op} {node.target}"
            )
    return cells_of_node


def _after_module(
    module: nn.Module, operands: Sequence[Cells], removed: dict[str, int], node: fx.Node
) -> Cells:
    if isinstance(module, Crop):
        return operands[0].cropped(module)
    op = spatial_op(module)
    if op is not None:
        if op.padding or op.ceil:
            raise ModelError(
                "the net has padding, so its outputs at the edge differ from those inside",
                subject=node.target,
                remedy="Use unpad() first",
            )
        return operands[0].after(op, removed.get(str(node.target), 0))
    if isinstance(module, POINTWISE_MODULES):
        return operands[0]
    raise ModelError("a step of the net whose geometry is not known", subject=f"{node.target}: {module}")


def _check_channels(node: fx.Node) -> None:
    if node.target is torch.cat:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if dim not in (1, -3):
            raise ModelError("the net joins its branches elsewhere than along channels", subject=node)


def geometry_of(net: nn.Module) -> NetGeometry:
    """Receptive field, stride and positions of an unpadded net's output cells, derived from its steps."""
    declared = getattr(net, "geometry", None)
    if isinstance(declared, NetGeometry):
        return declared
    graph = trace(net)
    cells = cells_of(graph)
    last = cells[next(node for node in graph.graph.nodes if node.op == "output")]
    return NetGeometry(last.window, last.stride, last.start, last.extent)
