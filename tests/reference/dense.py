"""The dense map by its definition: one pass of the net for each shift of the input."""

from __future__ import annotations

from torch import Tensor, nn

from lobule.nets.receptive import geometry_of


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
