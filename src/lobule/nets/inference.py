"""A network rewritten for inference: the same outputs up to float rounding, in less time."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lobule.nets.copying import copy_sharing_parameters, unshare_tensors
from lobule.nets.receptive import module_of, trace


def for_inference(net: nn.Module) -> fx.GraphModule:
    """A copy in evaluation mode: norms folded, no dropout, ReLU after pools, channels last in memory."""
    graph = fold_batch_norm(net)
    _drop(graph)
    _relu_after_pool(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.to(memory_format=torch.channels_last)


def fold_batch_norm(net: nn.Module) -> fx.GraphModule:
    """A copy in evaluation mode whose batch norms are part of the convolutions before them."""
    graph = trace(copy_sharing_parameters(net).eval())
    for node in list(graph.graph.nodes):
        norm = module_of(graph, node)
        if type(norm) is not nn.BatchNorm2d:  # a subclass may do more than normalise
            continue
        before = node.all_input_nodes[0]
        conv = module_of(graph, before)
        once = len(before.users) == 1 and _uses(graph, before.target) == 1
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and once:
            transposed = isinstance(conv, nn.ConvTranspose2d)
            graph.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm, transposed))
            _skip(graph, node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    unshare_tensors(graph, net)  # Folded layers have new tensors already.
    return graph.eval()


def _drop(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), nn.Dropout | nn.Dropout2d | nn.Identity):
            _skip(graph, node)


def _relu_after_pool(graph: fx.GraphModule) -> None:
    """Move ReLU behind the max-pool: they commute, and only a quarter of the values remain."""
    for node in list(graph.graph.nodes):
        before = node.all_input_nodes[0] if node.all_input_nodes else None
        if before is None or not isinstance(module_of(graph, node), nn.MaxPool2d):
            continue
        if isinstance(module_of(graph, before), nn.ReLU) and len(before.users) == 1:
            node.replace_input_with(before, before.all_input_nodes[0])
            with graph.graph.inserting_after(node):
                relu = graph.graph.call_module(str(before.target), (node,))
            node.replace_all_uses_with(relu, delete_user_cb=lambda user, relu=relu: user is not relu)
            graph.graph.erase_node(before)


def _uses(graph: fx.GraphModule, target: object) -> int:
    return sum(node.op == "call_module" and node.target == target for node in graph.graph.nodes)


def _skip(graph: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.graph.erase_node(node)
