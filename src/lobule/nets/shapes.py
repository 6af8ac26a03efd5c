"""Shapes of the tensors in a network by arithmetic: nothing is computed and no large tensor is allocated.

The device "meta" of torch does the same for every operation, but its first use imports sympy and parts of
torch's compiler, which takes about as long as `import torch`. It is used only for networks with operations
that are not listed here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOAT_BYTES = 4


class UnknownStep(AttributeError):
    """The shape after an operation cannot be derived here."""


class ShapeOnly:
    """A stand-in for a tensor that has only a shape; `RULES` answers the torch functions that receive it."""

    def __init__(self, shape: Sequence[int]) -> None:
        if any(length < 1 for length in shape):
            raise UnknownStep(f"a tensor without elements, of shape {tuple(shape)}")
        self.shape = torch.Size(shape)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> ShapeOnly:
        rule = RULES.get(function)
        if rule is None:
            raise UnknownStep(f"no rule for {function}")
        return rule(*arguments, **(options or {}))

    def __getattr__(self, name: str) -> Any:
        rule = METHODS.get(name)
        if rule is None:
            raise UnknownStep(f"no rule for the method {name}")
        return lambda *arguments, **options: rule(self, *arguments, **options)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def __getitem__(self, index: Any) -> ShapeOnly:
        return ShapeOnly(_expanded(self)[index].shape)

    def __add__(self, other: Any) -> ShapeOnly:
        return _broadcast(self, other)

    __radd__ = __mul__ = __rmul__ = __sub__ = __truediv__ = __add__

    @property
    def nbytes(self) -> int:
        return FLOAT_BYTES * math.prod(self.shape)


def _expanded(x: ShapeOnly) -> Tensor:
    """A tensor of this shape that stores a single number; views of it cost nothing."""
    return torch.empty(()).expand(x.shape)


def _same(x: ShapeOnly, *_: Any, **__: Any) -> ShapeOnly:
    return ShapeOnly(x.shape)


def _broadcast(x: Any, y: Any, **_: Any) -> ShapeOnly:
    shapes = [value.shape for value in (x, y) if isinstance(value, ShapeOnly | Tensor)]
    return ShapeOnly(np.broadcast_shapes(*map(tuple, shapes)))  # torch.broadcast_shapes imports sympy.


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)


def _slid(
    x: ShapeOnly, channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any = 1, ceil: bool = False
) -> ShapeOnly:
    """The shape after a window that slides over the rows and columns."""
    if isinstance(padding, str):
        raise UnknownStep(f"padding '{padding}'")
    sides = []
    steps = zip(x.shape[-2:], *map(_pair, (kernel, stride, padding, dilation)), strict=True)
    for length, window, step, pad, spread in steps:
        room = length + 2 * pad - spread * (window - 1) - 1
        count = (-(-room // step) if ceil else room // step) + 1
        if ceil and (count - 1) * step >= length + pad:
            count -= 1  # The last window must start inside the input or its left padding.
        sides.append(count)
    return ShapeOnly((*x.shape[:-3], channels, *sides))


def _convolution(
    x: ShapeOnly,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ShapeOnly:
    if x.shape[-3] != weight.shape[1] * groups:
        raise UnknownStep("a convolution of another number of channels")
    return _slid(x, weight.shape[0], tuple(weight.shape[-2:]), stride, padding, dilation)


def _max_pool(
    x: ShapeOnly,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> ShapeOnly:
    return _slid(x, x.shape[-3], kernel_size, stride or kernel_size, padding, dilation, ceil_mode)


def _average_pool(
    x: ShapeOnly,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    *_: Any,
    **__: Any,
) -> ShapeOnly:
    return _slid(x, x.shape[-3], kernel_size, stride or kernel_size, padding, 1, ceil_mode)


def _adaptive_pool(x: ShapeOnly, output_size: Any, *_: Any, **__: Any) -> ShapeOnly:
    return ShapeOnly((*x.shape[:-2], *_pair(output_size)))


def _linear(x: ShapeOnly, weight: Tensor, bias: Any = None) -> ShapeOnly:
    if x.shape[-1] != weight.shape[1]:
        raise UnknownStep("a linear layer of another input")
    return ShapeOnly((*x.shape[:-1], weight.shape[0]))


def _pad(x: ShapeOnly, pad: Sequence[int], *_: Any, **__: Any) -> ShapeOnly:
    shape = list(x.shape)
    for index in range(len(pad) // 2):
        shape[-1 - index] += pad[2 * index] + pad[2 * index + 1]
    return ShapeOnly(shape)


def _concatenated(tensors: Sequence[ShapeOnly], dim: int = 0) -> ShapeOnly:
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return ShapeOnly(shape)


def _mean(x: ShapeOnly, dim: Any, keepdim: bool = False) -> ShapeOnly:
    axes = {axis % len(x.shape) for axis in (dim if isinstance(dim, tuple | list) else (dim,))}
    lengths = [1 if axis in axes else n for axis, n in enumerate(x.shape) if keepdim or axis not in axes]
    return ShapeOnly(lengths)


def _view(name: str) -> Callable[..., ShapeOnly]:
    """The rule of a method that only rearranges axes."""
    return lambda x, *arguments, **options: ShapeOnly(
        getattr(_expanded(x), name)(*arguments, **options).shape
    )


VIEWS = ("reshape", "view", "permute", "flatten", "transpose", "unsqueeze", "squeeze", "movedim")
METHODS: dict[str, Callable[..., ShapeOnly]] = {
    **{name: _view(name) for name in VIEWS},
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh", "contiguous", "float", "to", "clone"), _same),
    "add": _broadcast,
    "add_": _broadcast,
    "mul": _broadcast,
    "mean": _mean,
}
"""Rules of the methods of a tensor, by name."""

RULES: dict[Any, Callable[..., ShapeOnly]] = {
    **dict.fromkeys((F.conv2d, torch.conv2d), _convolution),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    **dict.fromkeys((torch.add, torch.mul, Tensor.add, Tensor.mul), _broadcast),
    **dict.fromkeys((F.relu, torch.relu, F.relu_, torch.relu_, torch.sigmoid, torch.tanh, F.gelu), _same),
    **dict.fromkeys((F.silu, F.dropout, F.dropout2d, F.batch_norm, F.layer_norm, F.softmax), _same),
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    F.linear: _linear,
    F.pad: _pad,
    torch.cat: _concatenated,
    torch.flatten: METHODS["flatten"],
    torch.mean: _mean,
}
"""Rules of torch functions."""


def output_shape(module: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the output of a module in evaluation mode for an input of this shape.

    Raises:
        RuntimeError: The module does not accept the input.
    """
    return tuple(_run(module, shape, None).shape)


def activation_bytes(module: nn.Module, shape: Sequence[int]) -> int:
    """Return the peak memory of the activations for one float32 input of this shape, in bytes.

    The inputs and outputs of each leaf module are counted.

    Raises:
        RuntimeError: The module does not accept the input.
    """
    peak = 0

    def count(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal peak
        tensors = [value for value in (*inputs, output) if isinstance(value, ShapeOnly | Tensor)]
        peak = max(peak, sum(int(value.nbytes) for value in tensors))

    _run(module, shape, count)
    return peak


Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


def _run(module: nn.Module, shape: Sequence[int], hook: Hook | None) -> Any:
    if any(child.training for child in module.modules()):
        module = copy.deepcopy(module).eval()
    try:
        with _leaf_hooks(module, hook), torch.inference_mode():
            return module(ShapeOnly(shape))
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        return _on_meta(module, shape, hook)


def _on_meta(module: nn.Module, shape: Sequence[int], hook: Hook | None) -> Tensor:
    shadow = copy.deepcopy(module).to("meta")
    with _leaf_hooks(shadow, hook), torch.inference_mode():
        output: Tensor = shadow(torch.empty(*shape, device="meta"))
    return output


@contextmanager
def _leaf_hooks(module: nn.Module, hook: Hook | None) -> Iterator[None]:
    leaves = [] if hook is None else [leaf for leaf in module.modules() if not list(leaf.children())]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves if hook is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
