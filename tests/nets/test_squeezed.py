"""The squeezed trunk gives what the trunk gives, however much of the view is blank."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lobule.nets.four_view import ResNet22
from lobule.nets.published import Pooling
from lobule.nets.squeezed import Axis, Squeezed, axes_of
from tests.nets.four_view_recipe import made_tensor

WIDTHS = (2, 2, 3, 4, 4)


def trunk(channels: int = 1, padding: int = 0, pool: Pooling = "mean") -> ResNet22:
    net = ResNet22(channels, first_padding=padding, widths=WIDTHS, pool=pool).eval()
    state = {
        key: tensor if tensor.ndim == 0 else torch.from_numpy(made_tensor("t", "s", key, tuple(tensor.shape)))
        for key, tensor in net.state_dict().items()
    }
    net.load_state_dict(state)
    return net


def view(shape: tuple[int, int], breast: tuple[int, int, int, int], channels: int = 1) -> torch.Tensor:
    """Blank but for rows and columns [top, bottom) × [left, right)."""
    x = torch.full((1, channels, *shape), -0.4)
    top, bottom, left, right = breast
    noise = torch.randn(
        channels, bottom - top, right - left, generator=torch.Generator().manual_seed(sum(breast))
    )
    x[0, :, top:bottom, left:right] = noise
    return x


@settings(max_examples=25, deadline=None)
@given(
    top=st.integers(0, 700),
    bottom=st.integers(0, 700),
    right=st.integers(0, 700),
    height=st.integers(40, 300),
    padding=st.sampled_from([0, 3]),
    pool=st.sampled_from(["mean", "max"]),
)
def test_pooled_maps_and_maps_equal_those_of_the_trunk(top, bottom, right, height, padding, pool) -> None:
    net = trunk(padding=padding, pool=pool)
    x = view((top + height + bottom, 200 + right), (top, top + height, 0, 200))
    squeezed = Squeezed(copy.deepcopy(net)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(squeezed(x), net.pooled(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(squeezed.whole_map(x), net(x), atol=1e-5, rtol=1e-5)


def test_what_repeats_is_not_computed() -> None:
    """The first convolution sees the breast, the margin that its block needs, and little else."""
    squeezed, shapes = Squeezed(trunk()), []
    squeezed.blocks[0].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    with torch.inference_mode():
        squeezed(view((1600, 1400), (300, 900, 0, 500)))
        squeezed(view((1600, 1400), (0, 1600, 0, 1400)))
    (_, _, height, width), (_, _, whole_height, whole_width) = shapes
    assert height < whole_height / 2 and width < whole_width / 2
    assert height > 600 // 4 and width > 500 // 4


def test_a_whole_blank_view_and_several_in_a_batch() -> None:
    net = trunk(3)
    squeezed = Squeezed(copy.deepcopy(net))
    blank = torch.zeros(1, 3, 500, 400)
    both = torch.cat([view((500, 400), (50, 200, 0, 100), 3), view((500, 400), (90, 300, 0, 150), 3)])
    with torch.inference_mode():
        for x in (blank, both):
            torch.testing.assert_close(squeezed(x), net.pooled(x), atol=1e-5, rtol=1e-5)


def test_an_edge_that_varies_is_not_blank() -> None:
    x = view((300, 300), (0, 100, 0, 120))
    assert [axis.runs for axis in axes_of(x)] == [((100, 300),), ((120, 300),)]
    x[0, 0, 250, 299] = 1
    rows, columns = axes_of(x)
    assert rows.runs == ((251, 300),) and columns.runs == ()


def test_blank_edges_may_have_another_value_in_each_channel() -> None:
    x = view((300, 200), (0, 100, 0, 120), channels=2)
    x[0, 1, 100:] = 0.7
    x[0, 1, :, 120:] = 0.7
    assert [axis.runs for axis in axes_of(x)] == [((100, 300),), ((120, 200),)]


@given(
    length=st.integers(40, 200),
    start=st.integers(0, 30),
    layers=st.lists(st.sampled_from([(3, 1, 1), (3, 2, 1), (7, 2, 0), (3, 2, 0)]), min_size=1, max_size=3),
)
def test_slices_that_are_left_out_equal_ones_that_stay(length, start, layers) -> None:
    """A one-channel net along the axis tells every slice apart that is not really equal."""
    axis = Axis(length, ((start, length),), (0,))
    x = torch.zeros(1, 1, length)
    x[0, 0, :start] = torch.arange(1.0, start + 1)
    for kernel, stride, padding in layers:
        conv = nn.Conv1d(1, 1, kernel, stride, padding, bias=False)
        with torch.no_grad():
            conv.weight.copy_(torch.arange(1.0, kernel + 1)[None, None])
            x = conv(x)
    behind = axis.after(layers)
    assert behind.length == x.shape[2]
    for a, b in behind.runs:
        assert len(set(x[0, 0, a:b].tolist())) == 1
    squeezed = axis.squeezed_for(layers)
    assert sum(squeezed.weights()) == length
    assert all(out >= 0 for out in squeezed.left_out)
    shortened = squeezed.after(layers)
    assert len(shortened.remaining_slices()) == shortened.length - sum(shortened.left_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    net = trunk()
    x = view((600, 500), (100, 400, 0, 200))
    squeezed = Squeezed(copy.deepcopy(net)).to(dtype)
    with torch.inference_mode():
        actual = squeezed(x.to(dtype)).float()
        expected = net.pooled(x)
    assert (actual - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.1) * expected.abs().max()
