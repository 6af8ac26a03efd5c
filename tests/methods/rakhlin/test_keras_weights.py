"""Weights of keras-applications: converted files give the descriptors of an independent evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lobule.cli import main
from lobule.errors import BundleError, ConfigError, DamagedFile, LobuleError
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.encoders import Plan, pretrained, scale_pixels
from lobule.methods.rakhlin.keras_weights import read_keras_weights
from tests.methods.rakhlin import keras_files

SIDES = {"vgg16": 64, "resnet50": 230, "inception_v3": 139}


def pixels(side: int) -> keras_files.Pixels:
    return np.random.default_rng(7).integers(0, 256, (1, side, side, 3), np.uint8)


@pytest.mark.parametrize("encoder", list(SIDES))
def test_descriptors_equal_an_independent_evaluation_of_the_file(encoder: str, tmp_path: Path) -> None:
    image = pixels(SIDES[encoder])
    net, expected = getattr(keras_files, encoder)(image)
    names = list(net.layers)
    # Keras lists the layers of a network with branches by depth, not in the order of their creation.
    np.random.default_rng(3).shuffle(names)
    path = net.write(tmp_path / "weights.h5", ["input_1", *names])
    out = tmp_path / "keras"
    with pytest.raises(SystemExit) as exit_:
        main(["weights", "convert", str(path), "--method", "rakhlin", "--out", str(out), "--json"])
    assert not exit_.value.code
    config = Config(encoders=(encoder,), weights=(str(out / f"{encoder}.safetensors"),), keras=True)
    plan = Plan.of(config, 0)
    converted = pretrained(plan, config.weights_of(0))
    direct = pretrained(plan, str(path))
    with torch.inference_mode():
        descriptors = converted(scale_pixels(torch.from_numpy(image), plan))
        assert torch.equal(descriptors, direct(scale_pixels(torch.from_numpy(image), plan)))
    scale = float(expected.abs().max())
    assert float((descriptors.double() - expected).abs().max()) <= 1e-5 * max(1.0, scale)
    assert float(expected.std(dim=1).min()) > 1e-3 * scale  # descriptors that vary, so that order matters


def test_conversion_prints_the_settings_of_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = keras_files.vgg16(pixels(32))[0].write(tmp_path / "vgg16_notop.h5")
    command = [
        "weights",
        "convert",
        str(path),
        "--method",
        "rakhlin",
        "--out",
        str(tmp_path / "keras"),
        "--json",
    ]
    with pytest.raises(SystemExit):
        main(command)
    printed = json.loads(capsys.readouterr().out)
    assert "keras=true" in printed["settings"]
    assert printed["encoders"]["vgg16"]["source"] == "vgg16_notop.h5"
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2
    assert "--fresh" in capsys.readouterr().err


def test_a_gain_in_the_file_reaches_the_tensor_it_belongs_to(tmp_path: Path) -> None:
    net, _ = keras_files.resnet50(pixels(32))
    net.layers["bn5c_branch2b"]["bn5c_branch2b_gamma:0"][17] = 42
    net.layers["res5c_branch2b"]["res5c_branch2b_b:0"][5] = 3
    net.layers["bn5c_branch2b"]["bn5c_branch2b_running_mean:0"][5] = 10
    tensors = read_keras_weights(net.write(tmp_path / "w.h5")).tensors
    assert float(tensors["layer4.2.bn2.weight"][17]) == 42
    assert float(tensors["layer4.2.bn2.running_mean"][5]) == 7


def tampered(tmp_path: Path, change: Callable[[h5py.File], Any]) -> Path:
    path = keras_files.vgg16(pixels(32))[0].write(tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace_kernel(value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["block1_conv1/block1_conv1_W_1:0"]
        file["block1_conv1/block1_conv1_W_1:0"] = value

    return change


def store_kernel_outside(file: h5py.File) -> None:
    del file["block1_conv1/block1_conv1_W_1:0"]
    file["block1_conv1"].create_dataset(
        "block1_conv1_W_1:0", (3, 3, 3, 64), "f4", external=[("/etc/passwd", 0, 6912)]
    )


HOSTILE: dict[str, tuple[Callable[[h5py.File], Any], type[LobuleError]]] = {
    "a kernel that is a link to another file": (
        replace_kernel(h5py.ExternalLink("other.h5", "kernel")), DamagedFile),
    "a kernel that is a soft link": (replace_kernel(h5py.SoftLink("/block1_conv2")), DamagedFile),
    "a kernel stored in another file": (store_kernel_outside, DamagedFile),
    "a kernel of another shape": (replace_kernel(np.zeros((3, 3, 3, 32), "f4")), DamagedFile),
    "a kernel of text": (replace_kernel("text"), DamagedFile),
    "a layer without names": (
        lambda file: file["block2_conv1"].attrs.__delitem__("weight_names"), BundleError),
    "a layer with too many names": (
        lambda file: file["block2_conv1"].attrs.__setitem__("weight_names", [b"a"] * 9), BundleError),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    change, error = HOSTILE[name]
    with pytest.raises(error):
        read_keras_weights(tampered(tmp_path, change))


def test_files_of_other_networks_are_refused_with_the_names_of_the_right_ones(tmp_path: Path) -> None:
    net = keras_files.KerasNet(0)
    net.conv(torch.zeros(1, 3, 8, 8).double(), "conv2_block1_1_conv", 4, 1, 1)
    with pytest.raises(BundleError, match="not contain the ResNet-50 of 2018") as caught:
        read_keras_weights(net.write(tmp_path / "new.h5"))
    assert "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5" in str(caught.value)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "new.h5").read_bytes()[:1000])
    with pytest.raises(DamagedFile):
        read_keras_weights(tmp_path / "cut.h5")


def test_keras_networks_name_the_file_that_has_to_be_downloaded() -> None:
    with pytest.raises(ConfigError, match="inception_v3_weights_tf_dim_ordering_tf_kernels_notop"):
        pretrained(Plan("inception_v3", "tf", keras=True), "imagenet")
