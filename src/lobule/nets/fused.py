"""Fused convolutions for a CPU: a convolution with the ReLU, or the addition and ReLU, that follow it.

oneDNN, which computes torch's convolutions on a CPU, can do both in one pass through memory, with weights
that are laid out for it once. torch uses this only in compiled networks, and its compiler needs a C++
compiler on the machine. The operator below is the one that such compiled code calls.
"""

from __future__ import annotations

import operator
import threading
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lobule.nets.dense import Phases
from lobule.nets.receptive import module_of

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu)
_freeing = threading.Lock()
"""Held while weights are freed or restored, so that no thread restores what another one frees."""


def can_fuse(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch has the fused operators, and this processor runs them in this precision."""
    has_operators = all(
        hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight")
    )
    if not (torch.backends.mkldnn.is_available() and has_operators):
        return False
    if dtype == torch.bfloat16:  # oneDNN needs AVX-512 for it.
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class FusedConv(nn.Module):
    """A convolution, perhaps with ReLU; given a second tensor, their sum comes before the ReLU."""

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.relu = relu
        # plain attributes, because module operations cannot handle oneDNN's weight layout
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.kernel, self.channels = conv.kernel_size, conv.out_channels
        self.weight: Tensor | None = conv.weight.detach()
        """The weights in torch's layout; None once they are freed."""
        is_last = conv.weight.is_contiguous(memory_format=torch.channels_last)
        self._memory_format = torch.channels_last if is_last else torch.contiguous_format
        self._original: tuple[nn.Parameter, ...] = ()
        """The parameter that is freed together with `weight`, as both have the same memory. In a tuple, it
        is not a parameter of this module."""
        self._weights_by_shape: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        after = "relu" if self.relu else None
        if other is None:
            return self._alone(x, after or "none")
        if other.shape != self._shape(x):  # the operator does not broadcast, and does not report wrong shapes
            added = self._alone(x, "none") + other
            return added.relu_() if self.relu else added
        both: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.laid_out(x.shape), self.bias, *self.geometry, "add", None, after, [], ""
        )
        return both

    def _alone(self, x: Tensor, after: str) -> Tensor:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.laid_out(x.shape), self.bias, *self.geometry, after, [], ""
        )
        return output

    def laid_out(self, shape: torch.Size) -> Tensor:
        """Return the weights in the layout that oneDNN uses for this shape of the input.

        From another layout it would convert them in every call, which may take longer than the convolution.
        """
        weight = self._weights_by_shape.get(shape)
        if weight is None:
            plain = self._plain_weight()
            weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.geometry, list(shape))
            existing = tuple(self._weights_by_shape.values())  # Other threads may add weights meanwhile.
            same = (other for other in existing if _layout(other) == _layout(weight))
            weight = self._weights_by_shape.setdefault(shape, next(same, weight))
            with _freeing:
                self._free()
        return weight

    def _plain_weight(self) -> Tensor:
        """Return the weights in torch's layout. oneDNN gives them back bit by bit if they were freed."""
        weight = self.weight  # Another thread may free them.
        if weight is None:
            existing = tuple(self._weights_by_shape.values())  # Other threads may add weights meanwhile.
            dense = existing[0].to_dense()
            # `to_dense` gives dimensions of one element unusual strides, because of which `Module.to` would
            # copy the weights.
            weight = dense.clone(memory_format=self._memory_format)
        return weight

    def free_with(self, original: nn.Parameter) -> None:
        """Free the weights and the parameter that has the same memory once oneDNN has laid them out."""
        with _freeing:
            self._original = (original,)
            if self._weights_by_shape:
                self._free()

    def _free(self) -> None:
        for original in self._original:
            self.weight, original.data = None, torch.empty(0)

    def restore(self) -> None:
        """Give the freed parameter its weights back, and keep them."""
        with _freeing, torch.inference_mode(False):  # In inference mode it could not be trained any more.
            for original in self._original:
                self.weight = original.data = self._plain_weight()
            self._original = ()

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the output for a batch."""
        padding, stride, dilation, _ = self.geometry
        sides = [
            (length + 2 * int(padding[axis]) - dilation[axis] * (self.kernel[axis] - 1) - 1) // stride[axis]
            + 1
            for axis, length in enumerate(x.shape[-2:])
        ]
        return (*x.shape[:-3], self.channels, *sides)


def _layout(weight: Tensor) -> list[int]:
    """Return the description of the layout of a tensor of oneDNN."""
    description: list[int] = torch.ops.mkldnn._get_mkldnn_serialized_md(weight).tolist()
    return description


def fuse(module: nn.Module) -> nn.Module:
    """The module with every traced part in it fused, in place; what is not traced stays as it is.

    For float32 or bfloat16 on a CPU and inference alone: the result has no parameters and cannot be moved or
    copied.
    """
    if isinstance(module, fx.GraphModule):
        _fuse_graph(module)
    for name, child in list(module.named_children()):
        if isinstance(child, Phases):
            child.step = _fused_step(child.step)
        elif isinstance(child, fx.GraphModule) or not isinstance(module, fx.GraphModule):
            setattr(module, name, fuse(child))
    return module


def free_originals(fused: nn.Module, original: nn.Module) -> bool:
    """Free the weights of a network that the layers of its fused form hold in oneDNN's layout as well.

    The weights of each layer are freed when it first computes. The network cannot be used until
    `restore_originals` is called for the fused one.

    Returns:
        Whether there are such weights.
    """
    parameters = {parameter.data_ptr(): parameter for parameter in original.parameters()}
    count = 0
    for layer in fused.modules():
        if isinstance(layer, FusedConv) and layer.weight is not None:
            parameter = parameters.get(layer.weight.data_ptr())
            if parameter is not None:
                layer.free_with(parameter)
                count += 1
    return count > 0


def restore_originals(fused: nn.Module) -> None:
    """Restore the weights that `free_originals` freed."""
    for layer in fused.modules():
        if isinstance(layer, FusedConv):
            layer.restore()


def _fused_step(step: nn.Module) -> nn.Module:
    return FusedConv(step, relu=False) if _fusible(step) else step


def _fusible(conv: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _fuse_graph(graph: fx.GraphModule) -> None:
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        conv = module_of(graph, node)
        if not _fusible(conv) or len(node.args) != 1:
            continue
        last, other = _what_follows(graph, node, order)
        relu = _is_relu(graph, last)
        _replace(graph, node, last, FusedConv(conv, relu), other, order)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _what_follows(
    graph: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]
) -> tuple[fx.Node, fx.Node | None]:
    """The last node that the convolution replaces, and the tensor that it adds, if any."""
    after = _only_user(node)
    if after is None:
        return node, None
    if _is_relu(graph, after):
        return after, None
    operands = after.args
    if after.target not in _ADDITIONS or after.kwargs or len(operands) != 2:
        return node, None
    first, second = operands
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return node, None
    other = second if first is node else first
    if (
        order[other] > order[node]
    ):  # this input is computed later; if it is a convolution, it does the addition
        return node, None
    user = _only_user(after)
    return (user if user is not None and _is_relu(graph, user) else after), other


def _replace(
    graph: fx.GraphModule,
    node: fx.Node,
    last: fx.Node,
    fused_conv: FusedConv,
    other: fx.Node | None,
    order: dict[fx.Node, int],
) -> None:
    name = f"{node.name}_fused"
    graph.add_submodule(name, fused_conv)
    with graph.graph.inserting_before(last):
        new = graph.graph.call_module(name, (node.args[0],) if other is None else (node.args[0], other))
    order[new] = order[last]
    last.replace_all_uses_with(new)
    while last is not node:
        gone, last = last, next(n for n in last.all_input_nodes if n is not other)
        graph.graph.erase_node(gone)
    graph.graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    if node.op == "call_function":
        return node.target in _RELUS
    return isinstance(module_of(graph, node), nn.ReLU)
