"""Loading of checkpoints: key maps, features, and files that belong to another encoder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from lobule.encoders import ENCODERS, EncoderEntry
from lobule.encoders.load import announce_licence, load_file, open_encoder, restore_encoder
from lobule.encoders.owners import find_owners
from lobule.errors import ConfigError, ModelError
from lobule.nets.vit import resampled_positions
from tests.encoders.published import (
    LAYOUTS,
    checkpoint,
    features,
    gpfm_release,
    random_weights,
    small_entry,
)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def write(path: Path, tensors: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_names_give_the_published_features(name: str, tmp_path: Path, images: torch.Tensor) -> None:
    """The reference is a forward pass in plain operations on the tensors before they were named."""
    weights = random_weights(LAYOUTS[name])
    entry = small_entry(name)
    path = write(tmp_path / Path(entry.published.file).name, checkpoint(weights))
    loaded = load_file(entry, path)
    assert (loaded.name, loaded.dim, loaded.input_px) == (name, LAYOUTS[name].out, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.net(images), features(weights, images), atol=2e-5, rtol=1e-5)
    assert loaded.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_checkpoint_is_computed_in_float32(tmp_path: Path) -> None:
    tensors = checkpoint(random_weights(LAYOUTS["uni"]))
    path = write(tmp_path / "uni.safetensors", {name: tensor.half() for name, tensor in tensors.items()})
    loaded = load_file(small_entry("uni"), path)
    assert {tensor.dtype for tensor in loaded.net.state_dict().values()} == {torch.float32}


def test_swiglu_needs_silu(tmp_path: Path, images: torch.Tensor) -> None:
    """With timm's GELU the same weights load without an error, and the features differ."""
    entry = small_entry("uni2-h")
    weights = random_weights(LAYOUTS["uni2-h"])
    path = write(tmp_path / "pytorch_model.bin", checkpoint(weights))
    arguments = {**entry.network.arguments, "act_layer": torch.nn.GELU}
    wrong = replace(entry, network=replace(entry.network, arguments=arguments))
    with torch.no_grad():
        right = load_file(entry, path).net(images)
    assert float((right - features(weights, images)).abs().max()) < 2e-5
    from lobule.encoders import build

    original = build.network_arguments
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(build, "network_arguments", lambda e: {**original(e), "act_layer": torch.nn.GELU})
        other = load_file(wrong, path).net(images)
    assert float((other - right).abs().max()) > 1e-3


def test_gpfm_release_has_chunks_and_heads(tmp_path: Path, images: torch.Tensor) -> None:
    weights = random_weights(LAYOUTS["gpfm"], seed=3)
    path = write(tmp_path / "GPFM.pth", gpfm_release(weights))
    with torch.no_grad():
        loaded = load_file(small_entry("gpfm"), path).net(images)
    torch.testing.assert_close(loaded, features(weights, images), atol=2e-5, rtol=1e-5)


def test_resampling_rules_are_those_of_timm_and_transformers() -> None:
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, 1 + 37 * 37, 8)
    ours = resampled_positions(table, 16, 1, antialias=True)
    torch.testing.assert_close(ours, resample_abs_pos_embed(table, [16, 16]))
    plain = resampled_positions(table, 16, 1, antialias=False)
    assert float((plain - ours).abs().max()) > 0.05
    torch.testing.assert_close(plain[:, :1], table[:, :1])


def test_resnet50_gives_the_features_of_torchvision(tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    net = models.resnet50(weights=None).eval()
    path = write(tmp_path / "resnet50.safetensors", net.state_dict())
    loaded = load_file(ENCODERS["resnet50-v1"], path)
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(loaded.net(images), net(images), atol=1e-5, rtol=1e-5)
    assert loaded.input_px is None


# -- files of another encoder -------------------------------------------------------------------------------

WRONG_PAIRS = [
    ("uni", "uni2-h"), ("uni", "phikon-v2"), ("phikon-v2", "uni"), ("uni2-h", "uni"),
    ("virchow", "virchow2"), ("virchow2", "virchow"), ("virchow", "uni2-h"),
    ("h-optimus-0", "prov-gigapath"), ("prov-gigapath", "h-optimus-0"), ("h-optimus-0", "openmidnight"),
    ("openmidnight", "h-optimus-1"), ("h-optimus-1", "midnight-12k"), ("h0-mini", "hibou-b"),
    ("hibou-b", "h0-mini"), ("hibou-b", "hibou-l"), ("hibou-l", "hibou-b"), ("hibou-l", "kaiko-vitl14"),
    ("kaiko-vitl14", "hibou-l"), ("phikon", "kaiko-vitb16"), ("kaiko-vitb16", "phikon"),
    ("kaiko-vits16", "kaiko-vits8"), ("kaiko-vits8", "lunit-vits16"), ("lunit-vits16", "kaiko-vitb16"),
    ("kaiko-vitb8", "kaiko-vitb16"), ("midnight-12k", "prov-gigapath"), ("midnight-12k", "openmidnight"),
    ("gpfm", "uni"), ("uni", "gpfm"), ("keep", "uni"), ("uni", "keep"), ("gigapath-flash", "kaiko-vits16"),
    ("kaiko-vits16", "gigapath-flash"), ("resnet50", "uni"), ("uni", "resnet50-v1"),
    ("resnet50", "efficientnet-lite0"), ("phikon", "phikon-v2"),
]  # fmt: skip
"""The encoder that a file belongs to, and the encoder that it is loaded as."""


@cache
def small_checkpoint(name: str) -> dict[str, Any]:
    if name == "resnet50":
        return dict(models.resnet50(weights=None).state_dict())
    return checkpoint(random_weights(LAYOUTS[name]))


TWINS = {
    "h-optimus-0": "h-optimus-1", "kaiko-vits16": "lunit-vits16", "kaiko-vits8": "lunit-vits8",
    "resnet50-v1": "resnet50-v2",
}  # fmt: skip
"""Encoders with the same network and the same names of tensors."""


def owners_of(of: str) -> set[str]:
    """The encoders that a file may belong to, judged by its tensors."""
    of = "resnet50-v1" if of == "resnet50" else of
    pairs = {**TWINS, **{second: first for first, second in TWINS.items()}}
    return {of, pairs.get(of, of)}


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of encoders with the small networks of the checkpoints."""
    table = {name: small_entry(name) if name in LAYOUTS else entry for name, entry in ENCODERS.items()}
    monkeypatch.setattr("lobule.encoders.owners.ENCODERS", table)


@pytest.mark.usefixtures("small_table")
@pytest.mark.parametrize(("of", "target"), WRONG_PAIRS)
def test_file_of_another_encoder_is_refused(of: str, target: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", small_checkpoint(of))
    entry = small_entry(target) if target in LAYOUTS else ENCODERS[target]
    with pytest.raises(ModelError) as caught:
        load_file(entry, path)
    message = str(caught.value)
    assert str(path) in message
    assert f"does not contain the weights of '{target}'" in message
    assert "for example: " in message
    _, _, named = message.partition("the tensors of ")
    assert {name for name in ENCODERS if f"'{name}'" in named} == owners_of(of)


def test_files_of_published_size_are_recognised() -> None:
    with torch.device("meta"):
        tensors, others = (build(weights=None).state_dict() for build in (models.resnet50, models.resnet18))
    assert find_owners(tensors) == ["resnet50-v1", "resnet50-v2"]
    assert find_owners(others) == []
    full = replace(LAYOUTS["lunit-vits8"], width=384, depth=12)
    assert find_owners(checkpoint(random_weights(full))) == ["kaiko-vits8", "lunit-vits8"]


@pytest.mark.usefixtures("small_table")
def test_release_of_gpfm_is_recognised() -> None:
    release = gpfm_release(random_weights(LAYOUTS["gpfm"]))
    assert find_owners(release["teacher"]) == ["gpfm"]
    assert find_owners({**release["teacher"], "other": torch.ones(1)}) == []


def test_at_least_thirty_wrong_pairs() -> None:
    assert len(set(WRONG_PAIRS)) >= 30


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("norm.bias"), "missing norm.bias"),
        (without("blocks.1.ls2.gamma"), "missing blocks.1.ls2.gamma"),
        (
            lambda tensors: tensors.update({"blocks.9.norm1.bias": torch.ones(3)}),
            "unused blocks.9.norm1.bias",
        ),
        (
            lambda tensors: tensors.update({"norm.bias": torch.ones(3)}),
            r"misshapen norm.bias: \(3,\) instead",
        ),
        (lambda tensors: tensors["norm.bias"].fill_(float("nan")), "infinite norm.bias"),
    ],
)
def test_every_tensor_is_needed_and_used(
    change: Callable[[dict[str, Any]], None], expected: str, tmp_path: Path
) -> None:
    tensors = {name: tensor.clone() for name, tensor in small_checkpoint("uni").items()}
    change(tensors)
    path = write(tmp_path / "uni.safetensors", tensors)
    with pytest.raises(ModelError, match=expected):
        load_file(small_entry("uni"), path)


def test_prefix_of_a_wrapper_is_removed(tmp_path: Path, images: torch.Tensor) -> None:
    weights = random_weights(LAYOUTS["phikon"])
    tensors = {f"vit.{name}": tensor for name, tensor in checkpoint(weights).items()}
    path = write(tmp_path / "phikon.safetensors", tensors)
    with torch.no_grad():
        loaded = load_file(small_entry("phikon"), path).net(images)
    torch.testing.assert_close(loaded, features(weights, images), atol=2e-5, rtol=1e-5)


def test_half_a_download_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", small_checkpoint("uni"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=r"'uni' cannot be read: .*half downloaded.*again from https://"):
        load_file(small_entry("uni"), path)


def test_torch_file_with_code_is_not_executed(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"cls_token": Harmful()}, tmp_path / "uni.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(small_entry("uni"), tmp_path / "uni.pth")
    assert not (tmp_path / "executed").exists()


def hashed_entry(sha256: str) -> EncoderEntry:
    entry = small_entry("uni")
    return replace(entry, published=replace(entry.published, sha256=sha256, file="uni.safetensors"))


def test_known_hash_is_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.safetensors", small_checkpoint("uni"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load_file(hashed_entry(digest), path)
    load_file(hashed_entry(digest[:8]), path)
    with pytest.raises(ModelError, match=rf"not the published file of 'uni'.*SHA-256 {'0' * 8}.*{digest}"):
        load_file(hashed_entry("0" * 8), path)
    load_file(hashed_entry("0" * 8), path, unverified=True)


def test_published_file_of_another_encoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "mine.safetensors", small_checkpoint("uni"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    owner = replace(hashed_entry(digest[:8]), name="keep")
    monkeypatch.setattr("lobule.encoders.load.ENCODERS", {"uni": hashed_entry("0" * 8), "keep": owner})
    with pytest.raises(ModelError, match=rf"not the published file of 'uni'.*{digest}, the file of 'keep'"):
        load_file(hashed_entry("0" * 8), path)


def test_other_features_of_the_reference_tile_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "uni.safetensors", small_checkpoint("uni"))
    entry = replace(small_entry("uni"), reference=(9.0, 9.0))
    with pytest.raises(ModelError, match="other features of the reference tile"):
        load_file(entry, path)


def test_stored_tensors_restore_the_encoder(images: torch.Tensor) -> None:
    first = open_encoder("efficientnet-lite0", "random")
    again = restore_encoder("efficientnet-lite0", first.weights)
    assert again.hash_at(224) == first.hash_at(224)
    with torch.no_grad():
        torch.testing.assert_close(again.net(images), first.net(images))
    with pytest.raises(ModelError, match="not those of the encoder"):
        restore_encoder("kaiko-vits16", first.weights)


def test_names_of_libraries_still_work() -> None:
    assert open_encoder("lobule:tiny", "random").name == "lobule:tiny"
    assert open_encoder("torchvision:resnet18", "random").name == "resnet18"


def test_restrictive_licence_is_printed_once(caplog: pytest.LogCaptureFixture) -> None:
    announce_licence.cache_clear()
    with caplog.at_level(logging.WARNING, "lobule.encoders"):
        for _ in range(2):
            open_encoder("kaiko-vits16", "random")
        open_encoder("efficientnet-lite0", "random")
    (record,) = caplog.records
    assert "Kaiko non-commercial public licence, which forbids commercial use" in record.getMessage()
