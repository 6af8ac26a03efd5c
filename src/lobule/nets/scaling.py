"""The scaling that a net expects of its input; it belongs to the weights and is stored with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lobule.errors import ModelError
from lobule.nets.published import TORCHVISION_MEAN, TORCHVISION_STD

Triple = tuple[float, float, float]
BLOCK_VALUES = 1 << 20
"""Values of a block of rows, 4 MB in float32."""


@dataclass(frozen=True)
class InputScaling:
    """RGB / 255, minus `mean`, over `std`; the defaults are those of torchvision's weights."""

    mean: Triple = TORCHVISION_MEAN
    std: Triple = TORCHVISION_STD

    def apply(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 (N, H, W, 3) to float (N, 3, H, W), channels last in memory, on the images' device."""
        batch, height, width, _ = _checked(images).shape
        # over whole rows, because a loop over three channels at a time is several times slower
        mean, factor = self._mean_and_factor(images.device)
        rows = images.reshape(batch, height, width * 3).to(torch.float32)
        rows = rows.sub_(mean.repeat(width)).mul_(factor.repeat(width)).to(dtype)
        return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)

    def write_planes(self, images: Tensor, out: Tensor) -> Tensor:
        """Write the values of `apply` to a float32 tensor (N, 3, H, W) that is contiguous; return it."""
        mean, factor = self._mean_and_factor(_checked(images).device)
        for channel in range(3):
            out[:, channel].copy_(images[..., channel]).sub_(mean[channel]).mul_(factor[channel])
        return out

    def write_rows(self, images: Tensor, out: Tensor) -> Tensor:
        """Write the values of `apply` to a float32 tensor (N, H, W, 3); return it as (N, 3, H, W).

        Each block of rows stays in the cache of the processor until all steps are done.
        """
        batch, height, width, _ = _checked(images).shape
        mean, factor = (values.repeat(width) for values in self._mean_and_factor(images.device))
        rows, out_rows = images.reshape(batch, height, width * 3), out.view(batch, height, width * 3)
        block = max(1, BLOCK_VALUES // (batch * width * 3))
        for values, block_out in zip(rows.split(block, 1), out_rows.split(block, 1), strict=True):
            block_out.copy_(values).sub_(mean).mul_(factor)
        return out.permute(0, 3, 1, 2)

    def _mean_and_factor(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mean and the factor of each channel for values from 0 to 255."""
        std = torch.tensor(self.std, dtype=torch.float32, device=device) * 255
        return torch.tensor(self.mean, dtype=torch.float32, device=device) * 255, 1 / std

    def as_dict(self) -> dict[str, list[float]]:
        """For model.json; `from_dict` reads it back."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> InputScaling:
        try:
            mean, std = (tuple(float(value) for value in stored[name]) for name in ("mean", "std"))
            (m0, m1, m2), (s0, s1, s2) = mean, std
        except (KeyError, TypeError, ValueError):
            raise ModelError(
                "an input scaling that cannot be used",
                expected="mean and std, three numbers each",
                actual=repr(dict(stored)),
            ) from None
        return cls((m0, m1, m2), (s0, s1, s2))


PLAIN_SCALING = InputScaling((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""To -1..1, for nets that are trained from scratch."""


def _checked(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ModelError(
            "these are not RGB images",
            expected="uint8 of shape (N, H, W, 3)",
            actual=f"{images.dtype} of shape {tuple(images.shape)}",
        )
    return images
