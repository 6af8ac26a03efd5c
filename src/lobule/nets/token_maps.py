"""Tokens of a window: patch tokens of a vision transformer, or middle maps of a convolutional network.

A window of W × W pixels gives T × T tokens of W / T pixels. The maps of a convolutional network can have
another stride than the tokens, and their cells can be shifted, because padding is rarely symmetric. Each map
is resampled to the grid of the tokens by the area that its cells share with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lobule.errors import ConfigError
from lobule.nets.averaged import SamePadding
from lobule.nets.encoders import Encoder
from lobule.nets.receptive import module_of, spatial_op
from lobule.nets.vit import VitEncoder

WRAPPERS = ("body",)


@dataclass(frozen=True)
class MapPosition:
    """Where the cells of a map lie on the input: cell i has its centre at `centre` + i · `stride` pixels."""

    stride: int = 1
    centre: float = 0.5


class TokenNet(nn.Module, ABC):
    """Computes the tokens of windows: scaled pixels (N, 3, W, W) to (N, T, T, d)."""

    side: int
    """Tokens per side of a window."""
    token_px: int
    width: int

    @property
    def window(self) -> int:
        """Pixels per side of a window."""
        return self.side * self.token_px

    @property
    @abstractmethod
    def measured(self) -> nn.Module:
        """The network whose largest layer decides how much memory a batch needs."""


class PatchTokens(TokenNet):
    """The normalised patch tokens of a vision transformer."""

    def __init__(self, encoder: VitEncoder) -> None:
        super().__init__()
        body: Any = encoder.body
        self.encoder = encoder
        self.side, self.token_px = encoder.grid[0], int(body.patch_embed.patch_size[0])
        self.width = encoder.token_width

    @property
    def measured(self) -> nn.Module:
        return self.encoder

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder.all_tokens(x)[:, self.encoder.prefix :]
        return tokens.reshape(len(x), self.side, self.side, -1)


class MiddleMaps(TokenNet):
    """Maps of some strides of a convolutional network, side by side on the grid of the tokens."""

    def __init__(self, graph: fx.GraphModule, window: int, token_px: int, strides: Sequence[int]) -> None:
        """
        Args:
            graph: The traced network.
            window: Pixels per side of a window.
            token_px: Pixels per side of a token.
            strides: For each of these strides, the map at the end of the last block with this stride is used.
        """
        super().__init__()
        positions, sizes = positions_of(graph, window)
        nodes = [_last_of_stride(graph, positions, stride) for stride in strides]
        self.graph = _cut_after(graph, nodes)
        self.side, self.token_px = window // token_px, token_px
        self.width = sum(sizes[node][1] for node in nodes)
        for number, node in enumerate(nodes):
            shares = shared_area(positions[node], sizes[node][-1], self.side, token_px)
            self.register_buffer(f"shares_{number}", shares, persistent=False)

    @property
    def measured(self) -> nn.Module:
        return _First(self.graph)

    def forward(self, x: Tensor) -> Tensor:
        maps: Sequence[Tensor] = self.graph(x)
        rows = []
        for number, one in enumerate(maps):
            shares = self.get_buffer(f"shares_{number}").to(one.dtype)
            one = torch.matmul(torch.matmul(shares, one), shares.T)
            rows.append(one.permute(0, 2, 3, 1))
        return torch.cat(rows, dim=3)


class _First(nn.Module):
    """The first map of a network with several, for counting the memory of its layers."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.graph(x)[0]
        return first


def token_net(encoder: Encoder, window: int, token_px: int, strides: Sequence[int]) -> TokenNet:
    """The network that computes the tokens of an encoder.

    Args:
        encoder: The encoder.
        window: Pixels per side of a window of a convolutional network; a transformer has its own.
        token_px: Pixels per side of a token of a convolutional network; a transformer has its own.
        strides: The strides of the maps of a convolutional network.

    Raises:
        ConfigError: The encoder has neither tokens nor maps of these strides.
    """
    if isinstance(encoder.net, VitEncoder):
        return PatchTokens(encoder.net).eval()
    graph = encoder.for_inference()
    if not isinstance(graph, fx.GraphModule):
        raise ConfigError(
            f"'{encoder.name}' has neither patch tokens nor maps that can be read",
            expected="a vision transformer of `lobule.encoders.ENCODERS`, or a convolutional network",
            remedy="Use another encoder, such as efficientnet-lite0",
        )
    if encoder.input_px is not None and encoder.input_px != window:
        raise ConfigError(
            f"'{encoder.name}' accepts only windows of {encoder.input_px} px", actual=f"{window} px"
        )
    if window % token_px:
        raise ConfigError(
            "a window must consist of whole tokens",
            expected=f"a multiple of {token_px} px",
            actual=f"{window} px",
        )
    return MiddleMaps(graph, window, token_px, strides).eval()


# -- the maps of a convolutional network --------------------------------------------------------------------


class _Shapes(fx.Interpreter):
    """Runs a graph and records the shapes of its tensors."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def positions_of(
    graph: fx.GraphModule, window: int
) -> tuple[dict[fx.Node, MapPosition], dict[fx.Node, tuple[int, ...]]]:
    """The positions of the cells of every map of a network, and the shapes of its maps for a window."""
    recorder = _Shapes(graph)
    # Without padding, later layers may need larger windows; the maps before them are usable.
    with torch.inference_mode(), suppress(RuntimeError):
        recorder.run(torch.zeros(1, 3, window, window))
    positions: dict[fx.Node, MapPosition] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            positions[node] = MapPosition()
            continue
        before = next((positions[one] for one in node.all_input_nodes if one in positions), None)
        shape = recorder.shapes.get(node, ())
        if before is None or len(shape) != 4:
            continue
        after = _after(before, module_of(graph, node))
        if shape[-1] > 1:  # The single cell of a global pool has no position.
            positions[node] = after
    return positions, recorder.shapes


def _after(before: MapPosition, module: nn.Module | None) -> MapPosition:
    """The positions of the cells after a module."""
    if isinstance(module, SamePadding):
        reach = (module.kernel[0] - 1) * module.dilation[0] + 1
        top = max(reach - module.stride[0], 0) // 2
        return MapPosition(before.stride, before.centre - top * before.stride)
    op = None if module is None else spatial_op(module)
    if op is None:
        return before
    offset = ((op.reach - 1) / 2 - op.padding) * before.stride
    return MapPosition(before.stride * op.stride, before.centre + offset)


def _last_of_stride(graph: fx.GraphModule, positions: Mapping[fx.Node, MapPosition], stride: int) -> fx.Node:
    """The last map of the last block that ends with a stride."""
    ends: dict[str, fx.Node] = {}
    block = ""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            block = _block_of(str(node.target))
        if node in positions and node.op != "placeholder":
            ends[block] = node
    last = [node for node in ends.values() if positions[node].stride == stride]
    if not last:
        strides = sorted({positions[node].stride for node in ends.values()})
        raise ConfigError(
            f"the network has no map with a stride of {stride} px",
            expected=f"one of {', '.join(map(str, strides))}",
        )
    return last[-1]


def _block_of(target: str) -> str:
    """The block of a module, such as `blocks.4` of `body.blocks.4.2.conv`."""
    names = [name for name in target.split(".") if name not in WRAPPERS]
    return ".".join(names[:2])


def _cut_after(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """The network up to some of its maps, which it returns."""
    graph.graph.output_node().args = (tuple(nodes),)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def shared_area(position: MapPosition, cells: int, side: int, token_px: int) -> Tensor:
    """(side, cells): the share of each token that lies in each cell of a map, along one axis.

    A token beyond the last cell takes the nearest cell.
    """
    start = position.centre - position.stride / 2 + position.stride * torch.arange(cells).double()
    end = start + position.stride
    start[0], end[-1] = -torch.inf, torch.inf
    left = token_px * torch.arange(side).double()[:, None]
    shared = (torch.minimum(end, left + token_px) - torch.maximum(start, left)).clamp(min=0)
    return (shared / shared.sum(dim=1, keepdim=True)).float()
