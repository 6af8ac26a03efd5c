"""The student of reverse distillation: the bottleneck (OCBE) and the mirrored decoder.

Names inside the state dicts are those of the published checkpoints, {"bn": bottleneck, "decoder": decoder};
the frozen teacher is in `lobule.nets.teachers` and is not stored with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lobule.errors import ModelError

Maps = tuple[Tensor, Tensor, Tensor]
"""Three feature maps (B, C, H, W), each with half the side of the one before."""


@dataclass(frozen=True)
class StudentShape:
    """Architecture of bottleneck and decoder: the channels of the teacher's maps, and the blocks."""

    channels: tuple[int, int, int]
    block: Literal["basic", "bottleneck"] = "basic"
    width: int = 1
    """Width factor of the inner channels of bottleneck blocks: 2 for WideResNet-50-2."""
    ocbe_blocks: int = 2
    decoder_blocks: tuple[int, int, int] = (2, 2, 2)
    """From the deepest stage to the shallowest."""
    shortcut: Literal[1, 3] = 1
    """Kernel size of the bottleneck's first shortcut: 1 in RD4AD, 3 in FW-RD."""
    signed: bool = False
    """Whether the teacher's maps can be negative: then each output ends in a linear 1×1 convolution."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> StudentShape:
        tuples = {name: tuple(stored[name]) for name in ("channels", "decoder_blocks")}
        return cls(**{**stored, **tuples})


STUDENT_BLOCKS: dict[str, dict[str, Any]] = {
    "resnet18": {"ocbe_blocks": 2, "decoder_blocks": (2, 2, 2)},
    "resnet34": {"ocbe_blocks": 3, "decoder_blocks": (3, 4, 6)},
    "resnet50": {"block": "bottleneck", "ocbe_blocks": 3, "decoder_blocks": (3, 4, 6)},
    "wide_resnet50_2": {"block": "bottleneck", "width": 2, "ocbe_blocks": 3, "decoder_blocks": (3, 4, 6)},
    "squeezenet1_1": {"block": "bottleneck", "ocbe_blocks": 2, "decoder_blocks": (2, 2, 2)},
}
"""Blocks of the student of each teacher, as published for ResNets; unlisted teachers use those of
ResNet-18."""


def _conv(into: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, bias=False)


def _upsampling_conv(into: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(into, out, 2, 2, bias=False)


class Residual(nn.Module):
    """Alternating conv{i} and bn{i} with ReLUs in between, and a shortcut named as in the checkpoints."""

    def __init__(self, convolutions: list[nn.Module], channels: list[int], shortcut: str = "") -> None:
        super().__init__()
        self.shortcut_name = shortcut
        self.depth = len(convolutions)
        for i, (convolution, width) in enumerate(zip(convolutions, channels, strict=True), start=1):
            self.add_module(f"conv{i}", convolution)
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))

    def add_shortcut(self, convolution: nn.Module, channels: int) -> Residual:
        self.add_module(self.shortcut_name, nn.Sequential(convolution, nn.BatchNorm2d(channels)))
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self.depth:
                y = torch.relu(y)
        shortcut = self.get_submodule(self.shortcut_name)(x) if self.shortcut_name else x
        return torch.relu(y + shortcut)


def _block(shape: StudentShape, into: int, out: int, change: Literal["", "down", "up"]) -> Residual:
    """A residual block; `change` says how its (first) 3×3 convolution resizes the map."""

    def resampling(a: int, b: int) -> nn.Module:
        return _upsampling_conv(a, b) if change == "up" else _conv(a, b, 3, 2 if change == "down" else 1)

    if shape.block == "basic":
        convolutions: list[nn.Module] = [resampling(into, out), _conv(out, out, 3)]
        channels = [out, out]
    else:
        inner = out // 4 * shape.width
        convolutions = [_conv(into, inner, 1), resampling(inner, inner), _conv(inner, out, 1)]
        channels = [inner, inner, out]
    if change == "down":
        shortcut = _conv(into, out, shape.shortcut, 2)
        return Residual(convolutions, channels, "downsample").add_shortcut(shortcut, out)
    if change == "up":
        return Residual(convolutions, channels, "upsample").add_shortcut(_upsampling_conv(into, out), out)
    return Residual(convolutions, channels)


def _layer(
    shape: StudentShape, into: int, out: int, blocks: int, change: Literal["down", "up"]
) -> nn.Sequential:
    rest = (_block(shape, out, out, "") for _ in range(blocks - 1))
    return nn.Sequential(_block(shape, into, out, change), *rest)


class Bottleneck(nn.Module):
    """OCBE: fuses three maps to one with twice the channels and half the side of the deepest map."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        c1, c2, c3 = shape.channels
        self.conv1, self.bn1 = _conv(c1, c2, 3, 2), nn.BatchNorm2d(c2)
        self.conv2, self.bn2 = _conv(c2, c3, 3, 2), nn.BatchNorm2d(c3)
        self.conv3, self.bn3 = _conv(c2, c3, 3, 2), nn.BatchNorm2d(c3)
        # Unused here and by the authors; it exists so that checkpoints can be exchanged with their code.
        self.conv4, self.bn4 = _conv(4 * c3, 2 * c3, 1), nn.BatchNorm2d(2 * c3)
        self.bn_layer = _layer(shape, 3 * c3, 2 * c3, shape.ocbe_blocks, "down")
        initialise(self)

    def forward(self, maps: Maps) -> Tensor:
        first, second, third = maps
        first = torch.relu(self.bn1(self.conv1(first)))
        first = torch.relu(self.bn2(self.conv2(first)))
        second = torch.relu(self.bn3(self.conv3(second)))
        fused: Tensor = self.bn_layer(torch.cat([first, second, third], dim=1))
        return fused


class Decoder(nn.Module):
    """Expands the bottleneck's map to three maps with the shapes and the order of the teacher's maps."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        c1, c2, c3 = shape.channels
        deep, middle, shallow = shape.decoder_blocks
        self.layer1 = _layer(shape, 2 * c3, c3, deep, "up")
        self.layer2 = _layer(shape, c3, c2, middle, "up")
        self.layer3 = _layer(shape, c2, c1, shallow, "up")
        linear = [nn.Conv2d(c, c, 1) for c in shape.channels] if shape.signed else []
        self.linear = nn.ModuleList(linear)
        initialise(self)

    def forward(self, x: Tensor) -> Maps:
        third = self.layer1(x)
        second = self.layer2(third)
        first = self.layer3(second)
        if len(self.linear):
            ends = zip(self.linear, (first, second, third), strict=True)
            first, second, third = (end(features) for end, features in ends)
        return first, second, third


def initialise(net: nn.Module) -> None:
    """Initialise as published: Kaiming normal (fan-out); transposed convolutions keep torch's default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Student(nn.Module):
    """Bottleneck and decoder; their state dicts use the names of the published checkpoints."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        self.shape = shape
        self.bn = Bottleneck(shape)
        self.decoder = Decoder(shape)

    def forward(self, maps: Maps) -> Maps:
        rebuilt: Maps = self.decoder(self.bn(maps))
        return rebuilt


State = Mapping[str, Tensor]


def shape_of_checkpoint(checkpoint: Mapping[str, State]) -> StudentShape:
    """Derive the architecture from a {"bn": …, "decoder": …} checkpoint of RD4AD or FW-RD."""
    try:
        bn, decoder = _without_memory_banks(checkpoint["bn"]), _without_memory_banks(checkpoint["decoder"])
        c3, c2 = bn["conv3.weight"].shape[:2]
        c1 = bn["conv1.weight"].shape[1]
        shortcut = bn["bn_layer.0.downsample.0.weight"].shape[-1]
        bottleneck = "bn_layer.0.conv3.weight" in bn
        inner = bn["bn_layer.0.conv1.weight"].shape[0]
        deep, middle, shallow = (_count(decoder, f"layer{k}") for k in (1, 2, 3))
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            "this is not a reverse distillation checkpoint",
            expected="the state dicts 'bn' and 'decoder' with the published names",
            actual=f"missing or unusable: {error}",
        ) from error
    return StudentShape(
        channels=(c1, c2, c3),
        block="bottleneck" if bottleneck else "basic",
        width=inner * 4 // (2 * c3) if bottleneck else 1,
        ocbe_blocks=_count(bn, "bn_layer"),
        decoder_blocks=(deep, middle, shallow),
        shortcut=3 if shortcut == 3 else 1,
        signed="linear.0.weight" in decoder,
    )


def student_of_checkpoint(checkpoint: Mapping[str, State]) -> Student:
    """Build the student with a checkpoint's weights, in eval mode.

    Raises:
        ModelError: If a tensor is missing, surplus or of the wrong shape.
    """
    student = Student(shape_of_checkpoint(checkpoint))
    try:
        student.bn.load_state_dict(_without_memory_banks(checkpoint["bn"]), strict=True)
        student.decoder.load_state_dict(_without_memory_banks(checkpoint["decoder"]), strict=True)
    except RuntimeError as error:
        raise ModelError(
            "the reverse distillation checkpoint does not fit the student", actual=str(error)
        ) from error
    return student.eval()


def _without_memory_banks(state: State) -> dict[str, Tensor]:
    """The state dict without the memory banks of old checkpoints."""
    return {key: value for key, value in state.items() if "memory" not in key}


def _count(state: State, layer: str) -> int:
    return 1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{layer}."))
