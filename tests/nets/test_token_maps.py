"""Tokens of windows: those of transformers by hand, and the positions of maps of convolutional networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lobule.encoders import ENCODERS
from lobule.encoders.load import open_encoder
from lobule.errors import ConfigError
from lobule.nets.encoders import Encoder
from lobule.nets.token_maps import MiddleMaps, positions_of, shared_area, token_net
from tests.encoders.published import small_entry


def test_tokens_of_a_transformer_are_its_patch_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "hibou-l", small_entry("hibou-l"))
    encoder = open_encoder("hibou-l", "random")
    net = token_net(encoder, 999, 999, (999,))
    assert (net.side, net.token_px, net.window) == (16, 14, 224)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = net(images)
        reference = encoder.net.body.forward_features(images)  # type: ignore[union-attr,operator]
    assert tokens.shape == (2, 16, 16, net.width)
    torch.testing.assert_close(tokens[1, 3, 5], reference[1, 5 + 3 * 16 + 5])


def random_net(name: str, *, symmetric: bool = False) -> tuple[Encoder, MiddleMaps]:
    encoder = open_encoder(name, "random")
    if symmetric:
        for module in encoder.net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(sum(module.weight.flip(axes) for axes in ((), (2,), (3,), (2, 3))) / 4)
    net = token_net(encoder, 224, 16, (16,))
    assert isinstance(net, MiddleMaps)
    return encoder, net


@pytest.mark.parametrize(("name", "width"), [("efficientnet-lite0", 112), ("squeezenet1_1", 512)])
def test_tokens_lie_where_their_pixels_are(name: str, width: int) -> None:
    """With symmetric kernels, the response to a changed spot has its centre of mass at the spot."""
    _, net = random_net(name, symmetric=True)
    assert (net.side, net.token_px, net.width) == (14, 16, width)
    image = torch.full((1, 3, 224, 224), 0.2)
    centre = (np.arange(14) + 0.5) * 16
    with torch.inference_mode():
        base = net(image)
        for y, x in ((104, 120), (96, 128)):
            changed = image.clone()
            changed[..., y - 8 : y + 8, x - 8 : x + 8] += 1
            response = (net(changed) - base).abs().sum(dim=3)[0].numpy()
            assert abs((response.sum(axis=1) @ centre) / response.sum() - y) < 2.5
            assert abs((response.sum(axis=0) @ centre) / response.sum() - x) < 2.5


def test_the_middle_map_is_that_of_the_plain_network() -> None:
    """SqueezeNet's features.12, with its cells at 16 i + 15.5, averaged in pairs to tokens at 16 j + 8."""
    encoder, net = random_net("squeezenet1_1")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        features = encoder.net.body(images)  # type: ignore[union-attr,operator]
        tokens = net(images)
    assert features.shape == (2, 512, 13, 13)
    padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
    shares = 7.5 / 16
    rows = padded[:, :, :-1] * shares + padded[:, :, 1:] * (1 - shares)
    both = rows[..., :-1] * shares + rows[..., 1:] * (1 - shares)
    torch.testing.assert_close(tokens.permute(0, 3, 1, 2), both, rtol=1e-4, atol=1e-4)


def test_several_strides_are_joined_on_one_grid() -> None:
    net = token_net(open_encoder("squeezenet1_1", "random"), 224, 16, (8, 16))
    with torch.inference_mode():
        tokens = net(torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(6)))
    assert tokens.shape == (1, 14, 14, 256 + 512) and torch.isfinite(tokens).all()


def test_shared_area_of_a_shifted_map() -> None:
    encoder = open_encoder("squeezenet1_1", "random")
    graph = encoder.for_inference()
    positions, _ = positions_of(graph, 224)  # type: ignore[arg-type]
    ends = {position.stride: position for position in positions.values()}
    assert ends[16].centre == 15.5  # (3 - 1) / 2 pixels more at each of the strides 1, 2, 4 and 8
    shares = shared_area(ends[16], 13, 14, 16)
    assert shares.shape == (14, 13)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(14))
    assert shares[0, 0] == 1 and shares[13, 12] == 1
    torch.testing.assert_close(shares[5, 4:6], torch.tensor([7.5 / 16, 8.5 / 16]))


def test_networks_without_tokens_are_refused() -> None:
    encoder = open_encoder("squeezenet1_1", "random")
    with pytest.raises(ConfigError, match="no map with a stride of 64"):
        token_net(encoder, 224, 16, (64,))
    with pytest.raises(ConfigError, match="whole tokens"):
        token_net(encoder, 230, 16, (16,))
