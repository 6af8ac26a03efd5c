"""Losses that torch lacks: the cosine losses of reverse distillation, plain and focal."""

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
    """(B,): the cosine of each image's maps (C, H, W), flattened to one vector; in float32 at least."""
    return functional.cosine_similarity(_flat(teacher), _flat(student), dim=1, eps=1e-8)


def _flat(maps: Tensor) -> Tensor:
    return (maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps).flatten(1)


def distillation_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """RD4AD as its code has it: one cosine an image and stage, where the paper's text has one a position."""
    cosines = (flat_cosine(ours, theirs) for ours, theirs in zip(teacher, student, strict=True))
    return torch.stack([(1 - c).mean() for c in cosines]).sum()


def focal_distillation_loss(
    teacher: Sequence[Tensor], student: Sequence[Tensor], normal: Tensor, *, floor: float | None = FLOOR
) -> Tensor:
    """FW-RD: the student is drawn to the teacher on normal patches, and pushed away on tumour.

    `normal` is (B,), true (or 1) for normal patches. `floor=None` is the published form, without the clamp.
    """
    cosines = (flat_cosine(ours, theirs) for ours, theirs in zip(teacher, student, strict=True))
    return torch.stack([focal_terms(c, normal, floor=floor).mean() for c in cosines]).sum()


def focal_terms(cosine: Tensor, normal: Tensor, *, floor: float | None = FLOOR) -> Tensor:
    """-α (1 - p)² ln p with p the cosine of a normal patch and 1 - cosine of a tumour patch.

    p is clamped to [floor, 1]: a cosine may reach 1 + rounding, or fall below 0 where features are signed,
    and the logarithm would be NaN or infinite.
    """
    is_normal = normal.bool()
    p = torch.where(is_normal, cosine, 1 - cosine)
    if floor is not None:
        p = p.clamp(floor, 1.0)
    alpha = torch.where(is_normal, cosine.new_tensor(ALPHA_NORMAL), cosine.new_tensor(ALPHA_TUMOUR))
    return -alpha * (1 - p) ** GAMMA * p.log()
