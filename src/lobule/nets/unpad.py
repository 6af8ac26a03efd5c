"""Convolutional backbones without padding, on their pretrained weights.

Padding is set to 0 everywhere. Where branches meet, the one that lost less is cropped where it forks off, by
exactly what padding removed from the other, so both look at the same pixels again. State-dict keys stay.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx, nn
from torch.nn import functional as F

from lobule.errors import ModelError
from lobule.nets.receptive import Cells, Crop, OutOfLine, cells_of, is_merge, spatial_op, trace

HEADS = ("avgpool", "global_pool", "pre_logits", "classifier", "head", "fc")
"""Top-level module names that follow the trunk in the networks of torchvision and timm."""


def unpad(net: nn.Module, heads: Sequence[str] = HEADS) -> fx.GraphModule:
    """A copy of the net without padding and ceil-mode pooling, cut before the first of `heads`."""
    graph = trace(copy.deepcopy(net), heads)
    _cut(graph, heads)
    removed = _remove_padding(graph)
    while True:
        try:
            cells_of(graph, removed)
        except OutOfLine as misalignment:
            _crop_branches(graph, misalignment.meeting, misalignment.cells)
        else:
            graph.recompile()
            return graph


def _cut(graph: fx.GraphModule, heads: Sequence[str]) -> None:
    for node in graph.graph.nodes:
        named = node.op == "call_module" and str(node.target).split(".")[0] in heads
        if named or node.target is F.adaptive_avg_pool2d:
            graph.graph.output_node().args = (node.all_input_nodes[0],)
            break
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()


def _remove_padding(graph: fx.GraphModule) -> dict[str, int]:
    """Remove the padding of every convolution and pool; return the removed padding by module name."""
    removed = {}
    for name, module in graph.named_modules():
        op = spatial_op(module)
        if op is not None:
            removed[name] = op.padding
            module.padding = (0, 0)
            if isinstance(module, nn.Conv2d):
                module.padding_mode = "zeros"
            else:
                module.ceil_mode = False
    return removed


def _crop_branches(graph: fx.GraphModule, meeting: fx.Node, cells: dict[fx.Node, Cells]) -> None:
    operands = [node for node in meeting.all_input_nodes if node in cells]
    if len({cells[node].stride for node in operands}) > 1:
        raise ModelError("branches of the net meet at different strides", subject=meeting)
    shift = max(cells[node].shift for node in operands)
    extent = max(cells[node].extent for node in operands)
    for operand in operands:
        fork, taker = _fork(operand, meeting)
        stride = cells[fork].stride
        before, odd = divmod(shift - cells[operand].shift, stride)
        both, odd_end = divmod(extent - cells[operand].extent, stride)
        if odd or odd_end or both < before:
            raise ModelError("a branch of the net cannot be cropped to fit the other", subject=meeting)
        if both:
            name = f"{taker.name}_crop"
            graph.add_submodule(name, Crop(before, both - before))
            with graph.graph.inserting_before(taker):
                taker.replace_input_with(fork, graph.graph.call_module(name, (fork,)))


def _fork(operand: fx.Node, meeting: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The fork where the branch ending in `operand` starts, and its first step; a crop is cheapest there."""
    node, taker = operand, meeting
    while len(node.users) == 1 and node.op != "placeholder" and not is_merge(node):
        node, taker = node.all_input_nodes[0], node
    return node, taker
