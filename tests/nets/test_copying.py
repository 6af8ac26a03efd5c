"""Copies of networks for inference: what is shared with the original, and what never changes it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lobule.nets.copying import copy_sharing_parameters
from lobule.nets.fused import FusedConv
from lobule.nets.inference import for_inference
from lobule.nets.resnet import resnet
from lobule.scanning.contract import EngineSettings
from lobule.scanning.device import copy_to_device


class Net(nn.Module):
    """A convolution that is folded with its norm, one that is not, and a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.conv(x))) * self.scale
        return out


class Counting(nn.Module):
    """Writes into a buffer, and cannot be traced."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x if x.sum() > 0 else -x


def pointers(net: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}


def state(net: nn.Module) -> dict[str, tuple[Tensor, tuple[int, ...], bool]]:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {name: (each.clone(), each.stride(), each.requires_grad) for name, each in tensors.items()}


def test_a_copy_shares_parameters_and_leaves_the_original_as_it_is() -> None:
    net = Net()
    before = state(net)
    copied = copy_sharing_parameters(net)
    assert {each.data_ptr() for each in copied.parameters()} == {each.data_ptr() for each in net.parameters()}
    assert not {each.data_ptr() for each in copied.buffers()} & pointers(net)
    copied.requires_grad_(False).eval().to(dtype=torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert net.training
    for name, (value, stride, requires_grad) in state(net).items():
        assert value.equal(before[name][0])
        assert (stride, requires_grad) == before[name][1:]


def test_a_network_that_writes_into_a_buffer_does_not_change_the_original() -> None:
    net = Counting()
    copied = copy_to_device(net, EngineSettings(device="cpu", precision="float32"))
    copied(torch.ones(2))
    copied(torch.ones(2))
    assert isinstance(copied, Counting) and copied.calls.item() == 2 and net.calls.item() == 0


def test_buffers_of_one_tensor_stay_one_tensor() -> None:
    net = nn.ModuleList([Counting(), Counting()])
    net[1].calls = net[0].calls
    copied = copy_sharing_parameters(net)
    assert isinstance(copied, nn.ModuleList) and copied[0].calls is copied[1].calls


def test_a_network_for_inference_does_not_change_with_the_original() -> None:
    net = Net().eval()
    quick = for_inference(net)
    assert not pointers(quick) & pointers(net)
    x = torch.rand(1, 3, 9, 9)
    expected = quick(x)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.zero_()
    assert quick(x).equal(expected)


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_are_copied_to_the_cpu_only_for_another_layout(channels_last: bool) -> None:
    quick = for_inference(Net().eval())
    before = state(quick)
    engine = EngineSettings(device="cpu", precision="float32", channels_last=channels_last)
    copied = copy_to_device(quick, engine)
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(copied(x), quick(x))
    for name, (value, stride, _) in state(quick).items():
        assert value.equal(before[name][0])
        assert stride == before[name][1]
    convolutions = [
        layer for layer in copied.modules() if isinstance(layer, FusedConv) or type(layer) is nn.Conv2d
    ]
    assert len(convolutions) == 2
    shared = [layer.weight.data_ptr() in pointers(quick) for layer in convolutions]
    assert shared == [channels_last] * 2


def test_the_weights_of_the_original_are_freed_without_a_garbage_collection() -> None:
    net = resnet("resnet18", 2).eval()
    weights = np.zeros((512, 512, 3, 3), np.float32)
    net.layer4[1].conv2.weight.data = torch.from_numpy(weights)
    memory = weakref.ref(weights)
    del weights
    gc.disable()
    try:
        quick = for_inference(net)
        assert memory() is not None
        del net
        assert memory() is None
        assert not quick.training
    finally:
        gc.enable()
