"""GMIC (Shen et al. 2020): a coarse look finds where to look closely, and both are joined.

"An interpretable classifier for high-resolution breast cancer screening images utilizing weakly supervised
localization", Medical Image Analysis 68, 2021. Under the published parameter names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lobule.nets.four_view import ResNet22
from lobule.nets.published import FOUR_VIEW_WIDTHS, GMIC_REGION_PX, GMIC_REGIONS, GMIC_TOP_SHARES
from lobule.nets.resnet import resnet


@dataclass(frozen=True)
class GmicOutput:
    """The output of the network for a batch of N views; score columns are benign and malignant."""

    scores: Tensor
    """(N, 2)"""
    global_scores: Tensor
    """(N, 2), from the saliency alone."""
    local_scores: Tensor
    """(N, 2), from the regions alone."""
    saliency: Tensor
    """(N, 2, rows, columns)"""
    corners: Tensor
    """(N, regions, 2): row and column of each region's upper-left pixel."""
    attention: Tensor
    """(N, regions), sums to 1."""


class SaliencyLayer(nn.Module):
    """A 1×1 convolution under its published name."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gn_conv_last = nn.Conv2d(features, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gn_conv_last(x))


class Gmic(nn.Module):
    """(N, 1, 2944, 1920) standardised views to `GmicOutput`."""

    def __init__(
        self,
        *,
        top_share: float = GMIC_TOP_SHARES[0],
        regions: int = GMIC_REGIONS,
        region_px: int = GMIC_REGION_PX,
        widths: Sequence[int] = FOUR_VIEW_WIDTHS,
        quirks: Literal["reference", "fixed"] = "reference",
    ) -> None:
        super().__init__()
        self.top_share, self.regions, self.region_px, self.quirks = top_share, regions, region_px, quirks
        self.ds_net = ResNet22(1, first_padding=3, widths=widths)
        self.left_postprocess_net = SaliencyLayer(widths[-1])
        self.dn_resnet = resnet("resnet18")
        features = self.dn_resnet.fc.in_features
        self.dn_resnet.fc = nn.Identity()  # type: ignore[assignment]
        self.mil_attn_V = nn.Linear(features, 128, bias=False)
        self.mil_attn_U = nn.Linear(features, 128, bias=False)
        self.mil_attn_w = nn.Linear(128, 1, bias=False)
        self.classifier_linear = nn.Linear(features, 2, bias=False)
        self.fusion_dnn = nn.Linear(widths[-1] + features, 2)

    def forward(self, x: Tensor) -> GmicOutput:
        global_map = self.ds_net(x)
        saliency = self.left_postprocess_net(global_map)
        corners = self.region_corners(saliency.detach(), (x.shape[2], x.shape[3]))
        hidden = self.dn_resnet(cut_regions(x, corners, self.region_px)).view(len(x), self.regions, -1)
        joined, attention = self._attend(hidden)
        together = torch.cat([global_map.amax(dim=(2, 3)), joined], dim=1)
        return GmicOutput(
            scores=torch.sigmoid(self.fusion_dnn(together)),
            global_scores=top_mean(saliency, self.top_share),
            local_scores=torch.sigmoid(self.classifier_linear(joined)),
            saliency=saliency,
            corners=corners,
            attention=attention,
        )

    def region_corners(self, saliency: Tensor, shape: tuple[int, int]) -> Tensor:
        """(N, regions, 2) pixels: regions start at cells of the saliency map, so they are inside the view."""
        cells = tuple(
            round(self.region_px * n / length) for n, length in zip(saliency.shape[2:], shape, strict=True)
        )
        step = [length // n for n, length in zip(saliency.shape[2:], shape, strict=True)]
        corner_cells = choose_cells(saliency, (cells[0], cells[1]), self.regions, quirks=self.quirks)
        return corner_cells * torch.tensor(step, device=corner_cells.device)

    def _attend(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gated attention over the regions: (N, regions, features) to (N, features), and the weights."""
        gated = torch.sigmoid(self.mil_attn_U(hidden)) * torch.tanh(self.mil_attn_V(hidden))
        attention = torch.softmax(self.mil_attn_w(gated).squeeze(-1), dim=1)
        return (attention.unsqueeze(-1) * hidden).sum(dim=1), attention


def top_mean(saliency: Tensor, share: float) -> Tensor:
    """(N, 2): the mean of the most salient cells of each class."""
    flat = saliency.flatten(2)
    return flat.topk(max(1, round(flat.shape[2] * share)), dim=2).values.mean(dim=2)


def choose_cells(
    saliency: Tensor,
    window: tuple[int, int],
    count: int,
    *,
    quirks: Literal["reference", "fixed"] = "reference",
) -> Tensor:
    """(N, count, 2) upper-left cells of the most salient windows, one after the other, each then blanked.

    Of equal windows the first in raster order is chosen. A class whose map is constant carries no
    information; the published code divides by its range of 0, `fixed` leaves the class out.
    """
    low, high = saliency.amin(dim=(2, 3), keepdim=True), saliency.amax(dim=(2, 3), keepdim=True)
    spread = high - low
    if quirks == "fixed":
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    remaining = ((saliency - low) / spread).sum(dim=1, keepdim=True)
    columns = saliency.shape[3] - window[1] + 1
    chosen = []
    for _ in range(count):
        means = F.avg_pool2d(remaining, window, stride=1).flatten(1)
        order = torch.arange(means.shape[1], device=means.device).expand_as(means)
        is_best = means >= means.amax(dim=1, keepdim=True)
        first = torch.where(is_best, order, means.shape[1] - 1).amin(dim=1)
        cells = torch.stack([first // columns, first % columns], dim=1)
        for view, (row, column) in enumerate(cells.tolist()):
            remaining[view, 0, row : row + window[0], column : column + window[1]] = 0
        chosen.append(cells)
    return torch.stack(chosen, dim=1)


def cut_regions(x: Tensor, corners: Tensor, size: int) -> Tensor:
    """(N · regions, 3, size, size): the regions as they are in the view, in three equal channels."""
    pieces = [
        x[view, :, row : row + size, column : column + size].expand(3, -1, -1)
        for view, view_corners in enumerate(corners.tolist())
        for row, column in view_corners
    ]
    return torch.stack(pieces)
