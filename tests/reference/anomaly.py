"""Anomaly maps and patch scores by their definition, one patch at a time."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lobule.nets.anomaly import smooth, summed
from lobule.nets.reverse_distillation import Maps


def anomaly_map(teacher: Maps, student: Maps, size: tuple[int, int]) -> Tensor:
    """Anomaly maps (B, H, W): the sum over the stages of 1 - cosine, resized to `size` (rows, columns).

    Resizing aligns the corners, as published. The values are from 0 to 3 if no map has negative values,
    otherwise from 0 to 6.
    """
    distances = [
        1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=1)
        for ours, theirs in zip(teacher, student, strict=True)
    ]
    return summed(distances, size)


def patch_scores(
    teacher: Maps, student: Maps, size: tuple[int, int], padded_size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """The smoothed map of each patch with its mean (FW-RD's score) and its maximum (RD4AD's score).

    `padded_size` is the size of the teacher's padded input; the padding is removed before smoothing.
    """
    rows, columns = size
    maps = smooth(anomaly_map(teacher, student, padded_size or size)[:, :rows, :columns])
    return {"anomaly": maps, "mean": maps.mean(dim=(1, 2)), "max": maps.amax(dim=(1, 2))}
