"""The cosine losses of reverse distillation, plain and focal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

ALPHA_NORMAL = 0.1
ALPHA_TUMOUR = 0.9
GAMMA = 2.0
FLOOR = 1e-6


def flat_cosine(teacher: Tensor, student: Tensor) -> Tensor:
    """Cosines (B,) of the flattened maps (C, H, W) of each image, computed at least in float32."""
    return functional.cosine_similarity(_flat(teacher), _flat(student), dim=1, eps=1e-8)


def _flat(maps: Tensor) -> Tensor:
    return (maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps).flatten(1)


def distillation_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """RD4AD's loss as in its code: one cosine per image and stage (the paper's text has one per position)."""
    cosines = (flat_cosine(ours, theirs) for ours, theirs in zip(teacher, student, strict=True))
    return torch.stack([(1 - c).mean() for c in cosines]).sum()


def focal_distillation_loss(
    teacher: Sequence[Tensor], student: Sequence[Tensor], normal: Tensor, *, floor: float | None = FLOOR
) -> Tensor:
    """FW-RD's loss: the student imitates the teacher on normal patches and differs from it on tumour patches.

    Args:
        teacher: Maps of the teacher, one tensor per stage.
        student: Maps of the student, one tensor per stage.
        normal: (B,), true or 1 for normal patches.
        floor: Lower bound of the clamp; None is the published form without a clamp.
    """
    cosines = (flat_cosine(ours, theirs) for ours, theirs in zip(teacher, student, strict=True))
    return torch.stack([focal_terms(c, normal, floor=floor).mean() for c in cosines]).sum()


def focal_terms(cosine: Tensor, normal: Tensor, *, floor: float | None = FLOOR) -> Tensor:
    """The loss -α (1 - p)² ln p, where p is the cosine for normal patches and 1 - cosine for tumour patches.

    p is clamped to [floor, 1], because the logarithm would otherwise become NaN or infinite: rounding can
    move a cosine above 1, and features with signs can make it negative.
    """
    is_normal = normal.bool()
    p = torch.where(is_normal, cosine, 1 - cosine)
    if floor is not None:
        p = p.clamp(floor, 1.0)
    alpha = torch.where(is_normal, cosine.new_tensor(ALPHA_NORMAL), cosine.new_tensor(ALPHA_TUMOUR))
    return -alpha * (1 - p) ** GAMMA * p.log()
