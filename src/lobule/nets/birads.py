"""The net of the BI-RADS stage: the four-view trunks with a head that grades each breast from one view."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from lobule.nets.four_view import ANGLES, Trunks


class BiradsNet(nn.Module):
    """Grade the breast from every available view. The classifier continues with the trained trunks."""

    def __init__(self, trunks: Trunks, features: int, categories: int) -> None:
        super().__init__()
        self.four_view_resnet = trunks
        for angle in ANGLES:
            self.add_module(f"fc1_{angle}", nn.Linear(features, features))
            self.add_module(f"output_layer_{angle}", nn.Linear(features, categories))

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views by name, each (N, C, H, W), to logits (N, categories) by view."""
        graded = {}
        for view, x in views.items():
            angle = "mlo" if view.endswith("MLO") else "cc"
            hidden = F.relu(self.get_submodule(f"fc1_{angle}")(self.four_view_resnet(view, x)))
            graded[view] = self.get_submodule(f"output_layer_{angle}")(hidden)
        return graded
