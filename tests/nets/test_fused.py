"""Fused convolutions: the same numbers as the parts one after another."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, fx, nn

from lobule.nets import fused
from lobule.nets.backbones import BACKBONES
from lobule.nets.copying import copy_sharing_parameters
from lobule.nets.dense import densify
from lobule.nets.fused import FusedConv, can_fuse, free_originals, fuse, restore_originals
from lobule.nets.inference import for_inference
from lobule.nets.receptive import geometry_of

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this build of torch has no oneDNN operators")


class Blocks(nn.Module):
    """Every way in which a convolution may be followed, and some in which nothing may be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.side = nn.Conv2d(8, 8, 1)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.last = nn.Conv2d(8, 4, 3, stride=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.grouped(x) + x)  # adds, then ReLU
        x = self.dilated(x) + self.side(x)  # two convolutions: the later one adds
        y = self.mirrored(x)
        y = torch.relu(y + y)  # not a convolution and another branch
        z = self.same(y)
        z = z * 2 + z  # the convolution is used twice
        return self.last(z).relu() + 1.5


def traced(net: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(net.eval())


@torch.inference_mode()
def test_every_form_gives_what_its_parts_give() -> None:
    torch.manual_seed(0)
    net = Blocks()
    x = torch.randn(3, 3, 21, 18).contiguous(memory_format=torch.channels_last)
    expected = net(x)
    fused = fuse(traced(net))
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-6)
    assert sum(isinstance(module, FusedConv) for module in fused.modules()) == 5
    assert sum(type(module) is nn.Conv2d for module in fused.modules()) == 2  # reflect and "same" stay
    left = [node for node in fused.graph.nodes if node.op == "call_module" and "relu" in str(node.target)]
    assert not left


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_backbones_dense_or_not(name: str) -> None:
    torch.manual_seed(0)
    net = BACKBONES[name](2).eval()
    plain = for_inference(net)
    side = geometry_of(net).in_size(2) + 3
    x = torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    expected = plain(x)
    dense = densify(plain, 4)
    finer = dense(x) if name in ("tiny", "resnet18", "squeezenet1_1") else None
    scale = float(expected.abs().max())
    if finer is not None:
        got = fuse(dense)(x)
        torch.testing.assert_close(got, finer, rtol=1e-4, atol=1e-5 * scale)
        plain = for_inference(net)  # the dense net shares its graph's parts
    torch.testing.assert_close(fuse(plain)(x), expected, rtol=1e-4, atol=1e-5 * scale)


@torch.inference_mode()
def test_other_sizes_than_the_first_and_strided_views() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 3, stride=2))
    fused = fuse(traced(net))
    for height, width in ((32, 32), (9, 200), (5, 5)):
        x = torch.randn(2, 3, height + 4, width)[:, :, 2:-2]
        torch.testing.assert_close(fused(x), net(x), rtol=1e-5, atol=1e-6)


class Broadcast(nn.Module):
    """A convolution of a pooled map and the map itself added, either of them the smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.pooled = nn.Conv2d(3, 8, 3, stride=2, dilation=2), nn.Conv2d(8, 8, 1)
        self.pool, self.late = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.map(x)
        x = torch.relu(self.pooled(self.pool(x)) + x)
        context = self.pool(x)
        return self.late(x) + context


@torch.inference_mode()
def test_what_is_broadcast_is_added_as_torch_adds_it() -> None:
    torch.manual_seed(0)
    net = Broadcast()
    x = torch.randn(3, 3, 25, 19).contiguous(memory_format=torch.channels_last)
    expected = net(x)
    fused = fuse(traced(net))
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_traced_parts_of_other_modules_are_fused() -> None:
    """A traced net inside a plain module, and a traced net inside another traced net."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = torch.randn(1, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    expected = inner(x)
    graph = fx.Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    outer = fx.GraphModule({"inner": traced(inner)}, graph)
    for module in (nn.Sequential(traced(inner)), outer):
        fused = fuse(module)
        assert sum(isinstance(layer, FusedConv) for layer in fused.modules()) == 1
    torch.testing.assert_close(fuse(nn.Sequential(traced(inner)))(x), expected)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (3, 2, 2), (2, 0, 3)])
def test_shape_of_the_sum_is_that_of_the_convolution(
    kernel: int, stride: int, padding: int, dilation: int
) -> None:
    """A wrong shape would only make the sum slower, since it is then added apart."""
    conv = nn.Conv2d(3, 4, kernel, stride, padding, dilation)
    x = torch.zeros(2, 3, 37, 24)
    with torch.inference_mode():
        assert FusedConv(conv, relu=False)._shape(x) == tuple(conv(x).shape)


def test_weights_have_the_layout_of_the_input_shape_and_are_shared_by_shapes_of_the_same_layout() -> None:
    conv = nn.Conv2d(96, 96, 3)
    fused_conv = FusedConv(conv, relu=True)
    layout = torch.ops.mkldnn._get_mkldnn_serialized_md
    layouts, addresses = set(), set()
    for side in (5, 6, 24, 25, 340, 341):
        with torch.inference_mode():
            x = torch.rand(2, 96, side, side).contiguous(memory_format=torch.channels_last)
            assert torch.allclose(fused_conv(x), conv(x).relu(), atol=1e-5)
        weight = fused_conv.laid_out(x.shape)
        expected = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *fused_conv.geometry, list(x.shape)
        )
        assert torch.equal(layout(weight), layout(expected))
        layouts.add(tuple(layout(weight).tolist()))
        addresses.add(id(weight))
    assert len(layouts) == len(addresses) <= 3


def test_another_thread_may_lay_out_weights_while_layouts_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = FusedConv(nn.Conv2d(3, 8, 3), relu=True)
    layer.laid_out(torch.Size((1, 3, 16, 16)))
    sides = iter(range(20, 30))

    def layout_while_another_thread_adds_one(weight: Tensor) -> int:
        side = next(sides, None)
        if side is not None:  # As a thread with a field of another size does.
            layer._weights_by_shape[torch.Size((1, 3, side, side))] = weight
        return id(weight)

    monkeypatch.setattr(fused, "_layout", layout_while_another_thread_adds_one)
    assert layer.laid_out(torch.Size((1, 3, 50, 50))) is not None


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_freed_weights_are_restored_bit_by_bit(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    net = traced(Blocks()).to(memory_format=memory_format)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fused_net = fuse(copy_sharing_parameters(net))
    free_originals(fused_net, net)
    small, large = torch.randn(3, 3, 21, 18), torch.randn(1, 3, 120, 90)
    with torch.inference_mode():
        outputs = [fused_net(x.contiguous(memory_format=torch.channels_last)) for x in (small, large)]
    assert net.first.weight.numel() == net.grouped.weight.numel() == 0
    assert net.mirrored.weight.numel() > 0, "a layer that is not fused keeps its weights"
    restore_originals(fused_net)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.ndim != 4 or tensor.is_contiguous(memory_format=memory_format), name
    with torch.inference_mode():
        for x, output in zip((small, large), outputs, strict=True):
            again = fused_net(x.contiguous(memory_format=torch.channels_last))
            assert torch.equal(again, output)
    net(small).sum().backward()  # The restored parameters can be trained.
    assert net.first.weight.grad is not None


def test_the_weights_are_the_same_for_shapes_that_are_new_after_the_originals_were_freed() -> None:
    conv = nn.Conv2d(96, 96, 3)
    keeping, freeing = FusedConv(conv, relu=True), FusedConv(conv, relu=True)
    freeing.free_with(conv.weight)
    assert not list(freeing.parameters()), "a fused layer has no parameters"
    with torch.inference_mode():
        for side in (5, 24, 340):
            x = torch.rand(2, 96, side, side).contiguous(memory_format=torch.channels_last)
            assert torch.equal(freeing(x), keeping(x))
    assert freeing.weight is None and conv.weight.numel() == 0


def test_a_parameter_of_two_layers_is_restored() -> None:
    conv = nn.Conv2d(3, 8, 3)
    expected = conv.weight.detach().clone()
    layers = nn.ModuleList([FusedConv(conv, relu=True), FusedConv(conv, relu=False)])
    free_originals(layers, conv)
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        layers[0](x)
        layers[1](x)
    assert conv.weight.numel() == 0
    restore_originals(layers)
    assert torch.equal(conv.weight, expected)


def test_weights_that_are_laid_out_already_are_freed_at_once() -> None:
    conv = nn.Conv2d(3, 8, 3)
    layer = FusedConv(conv, relu=True)
    with torch.inference_mode():
        layer(torch.rand(1, 3, 16, 16))
    free_originals(layer, conv)
    assert layer.weight is None and conv.weight.numel() == 0


def test_weights_survive_threads_that_compute_while_they_are_restored() -> None:
    conv = nn.Conv2d(3, 8, 3)
    expected = conv.weight.detach().clone()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            layer = FusedConv(conv, relu=True)
            free_originals(layer, conv)
            shapes = [torch.Size((1, 3, side, side)) for side in range(8, 24)]
            with ThreadPoolExecutor(4) as pool:
                futures = [pool.submit(layer.laid_out, shape) for shape in shapes]
                futures += [pool.submit(layer.restore) for _ in range(4)]
                for future in futures:
                    future.result()
            layer.restore()
            assert torch.equal(conv.weight, expected)
    finally:
        sys.setswitchinterval(interval)
