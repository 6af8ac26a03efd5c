"""Dense maps by their definition, one pass for each shift of the input, and in the à-trous form."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from lobule.nets.dense import DenseNet
from lobule.nets.receptive import Crop, cells_of, geometry_of, spatial_op, trace


def offset_passes(net: nn.Module, x: Tensor, alpha: int) -> Tensor:
    """The dense map: alpha² passes of the net over shifted inputs, interleaved."""
    dense = geometry_of(net).dense(alpha)
    rows, columns = (dense.out_size(length) for length in x.shape[-2:])
    passes = {
        (i, j): net(x[..., i * dense.stride :, j * dense.stride :])
        for i in range(min(alpha, rows))
        for j in range(min(alpha, columns))
    }
    dense_map = passes[0, 0].new_empty((*passes[0, 0].shape[:2], rows, columns))
    for (i, j), pass_map in passes.items():
        dense_map[..., i::alpha, j::alpha] = pass_map
    return dense_map


def dilated(net: nn.Module, alpha: int) -> DenseNet:
    """The à-trous form: the last log2(alpha) strided steps lose their stride, and later steps are dilated."""
    dense = geometry_of(net).dense(alpha)
    graph = trace(net)
    cells = cells_of(graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_module":
            continue
        before, after = cells[node.all_input_nodes[0]].stride, cells[node].stride
        dilation = before // min(before, dense.stride)
        stride = min(after, dense.stride) // min(before, dense.stride)
        module = graph.get_submodule(str(node.target))
        node.target = f"{node.name}_dilated"
        graph.add_submodule(node.target, _dilated(module, dilation, stride))
    graph.delete_all_unused_submodules()
    graph.recompile()
    return DenseNet(graph, dense, ())


def _dilated(module: nn.Module, dilation: int, stride: int) -> nn.Module:
    if isinstance(module, Crop):
        return Crop(module.before * dilation, module.after * dilation)
    op = spatial_op(module)
    if op is None or (dilation == 1 and op.stride == stride):
        return module
    assert not isinstance(module, nn.AvgPool2d), "an average pool cannot be dilated"
    copied = copy.copy(module)  # a shallow copy shares the parameters
    vars(copied).update(dilation=(op.dilation * dilation,) * 2, stride=(stride, stride))
    return copied
