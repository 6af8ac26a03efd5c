"""The patch DenseNet for inference: patch by patch, or over a whole view at once.

The three input channels are equal, so one convolution of their summed weights reads them. Norms are folded
into the convolution before them, transitions pool before they mix, and every block writes into one map
instead of joining copies. The outputs are those of the net, to float rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import DenseNet

from lobule.nets.four_view import same_padded
from lobule.nets.squeezed import Affine

CELL = 32
"""Side in pixels of the area of one cell of the last map."""
FLOAT_BYTES = 4


class _Layer(nn.Module):
    """One layer of a dense block: from all channels so far to the next few."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.affine = Affine(layer.norm1)
        self.conv1 = fuse_conv_bn_eval(layer.conv1, layer.norm2)
        self.conv2: nn.Conv2d = layer.conv2

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv2(self.conv1(self.affine(x)).relu_())
        return features


class _Block(nn.Module):
    """A dense block and, except for the last block, the transition after it."""

    def __init__(self, block: nn.Module, transition: Any) -> None:
        super().__init__()
        layers = [_Layer(layer) for layer in block.children()]
        self.layers = nn.ModuleList(layers)
        self.growth = sum(layer.conv2.out_channels for layer in layers)
        self.affine = None if transition is None else Affine(transition.norm)
        self.mix: nn.Conv2d | None = None if transition is None else transition.conv

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        last = x.is_contiguous(memory_format=torch.channels_last)
        z = torch.empty(
            (n, channels + self.growth, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        z[:, :channels] = x
        for layer in self.layers:
            features = layer(z[:, :channels])
            z[:, channels : channels + features.shape[1]] = features
            channels += features.shape[1]
        if self.affine is None or self.mix is None:
            return z
        mixed: Tensor = self.mix(F.avg_pool2d(self.affine(z), 2, 2))
        return mixed


class Painter(nn.Module):
    """(N, 1, H, W) to logits (N, classes); `evidence` gives the contribution of each position."""

    def __init__(self, net: DenseNet) -> None:
        super().__init__()
        features = net.eval().features
        first = fuse_conv_bn_eval(features.conv0, features.norm0)
        assert first.bias is not None
        self.first_weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True), requires_grad=False)
        self.first_bias = nn.Parameter(first.bias.detach(), requires_grad=False)
        numbers = range(1, sum(name.startswith("denseblock") for name, _ in features.named_children()) + 1)
        self.blocks = nn.ModuleList(
            _Block(
                features.get_submodule(f"denseblock{number}"), getattr(features, f"transition{number}", None)
            )
            for number in numbers
        )
        self.final, self.classifier = Affine(features.norm5), net.classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self._map(x).mean(dim=(2, 3)))
        return logits

    def evidence(self, x: Tensor) -> Tensor:
        """(N, classes, H/32, W/32): its mean over a patch's cells is the patch's logits.

        The sides are multiples of 32. Cells by the edge see the same zeros as those of a patch do; cells
        inside see their neighbours, where those of a patch may see its edge.
        """
        z = self._map(x)
        return F.conv2d(z, self.classifier.weight[:, :, None, None], self.classifier.bias)

    def bytes_per_px(self) -> float:
        """Bytes of activations per input pixel at the largest layer."""
        width = self.first_weight.shape[0]
        most, channels, cell = width / 4 * 2 + 1, width, 16
        for block in self.blocks:
            assert isinstance(block, _Block)
            end = channels + block.growth
            most = max(most, (2.5 * end + channels) / cell)
            channels, cell = end // 2, cell * 4
        return FLOAT_BYTES * most

    def _map(self, x: Tensor) -> Tensor:
        x = F.conv2d(same_padded(x, 7, 2), self.first_weight, self.first_bias, stride=2)
        # ReLU and max-pool commute because the padding is 0
        z = F.max_pool2d(same_padded(x.relu_(), 3, 2), 3, 2)
        for block in self.blocks:
            z = block(z)
        last: Tensor = self.final(z)
        return last
