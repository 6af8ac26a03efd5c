"""Files that are no weights, names that are no encoders, and combinations of both."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lobule.api.features import open_encoders, with_weights
from lobule.bundles import plain_weights
from lobule.cli.features import plan
from lobule.cohort import Case, Cohort
from lobule.encoders import find_entry
from lobule.encoders.load import load_file
from lobule.errors import ConfigError, ModelError
from tests.encoders.published import LAYOUTS, checkpoint, random_weights, small_entry

UNI = small_entry("uni")


class Harmful:
    """An object that creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def tensors_of_uni() -> dict[str, Any]:
    return checkpoint(random_weights(LAYOUTS["uni"]))


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_file_with_code_is_named_as_such_and_unsafe_loading_is_not_recommended(tmp_path: Path) -> None:
    path = saved(tmp_path / "uni.pth", {**tensors_of_uni(), "extra": Harmful(tmp_path / "executed")})
    with pytest.raises(ConfigError) as caught:
        load_file(UNI, path)
    message = str(caught.value)
    assert "'uni' cannot be read" in message
    assert "an object `" in message
    assert "it could run code" in message
    assert "a file that contains only tensors" in message
    assert "half downloaded" not in message, "a complete file is not called incomplete"
    assert "weights_only" not in message
    assert "\x1b" not in message
    assert not (tmp_path / "executed").exists()


def test_pickle_that_torch_did_not_save_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "uni.pkl"
    path.write_bytes(pickle.dumps(Harmful(tmp_path / "executed")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of the version of the pickle
        with pytest.raises(ConfigError, match="no torch file, or one with contents") as caught:
            load_file(UNI, path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<!DOCTYPE html><html><title>Log in</title></html>", "a web page, perhaps that of a login"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"", "half downloaded.*an empty file"),
    ],
)
def test_web_pages_and_pointers_are_recognised(
    content: bytes, expected: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_file(UNI, path)


def test_names_of_plain_weights_are_text(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", {3: torch.ones(1), "bias": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"weights.pth.*does not contain plain weights"):
        plain_weights(path)


def test_network_of_a_training_is_ambiguous_beside_another(tmp_path: Path) -> None:
    tensors = tensors_of_uni()
    path = saved(tmp_path / "training.pth", {"model": tensors, "teacher": tensors, "epoch": 3})
    with pytest.raises(ConfigError, match=r"several networks.*which of them is 'uni'.*model, teacher"):
        load_file(UNI, path)
    assert load_file(UNI, saved(tmp_path / "one.pth", {"teacher": tensors, "epoch": 3})).dim


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, 3: torch.ones(1)},
        lambda tensors: {**tensors, "norm.bias": tensors["norm.bias"].to_sparse()},
        lambda tensors: {**tensors, "norm.bias": tensors["norm.bias"].to("meta")},
        lambda tensors: list(tensors.values()),
    ],
    ids=["name is a number", "sparse", "without values", "list"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_content_that_is_not_tensors_by_name_is_refused(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    path = saved(tmp_path / "uni.pth", change(tensors_of_uni()))
    with pytest.raises(ConfigError, match=r"uni.pth.*tensors by name, with all of their values"):
        load_file(UNI, path)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int32])
def test_tensors_of_another_type_are_refused(kind: torch.dtype, tmp_path: Path) -> None:
    """Complex weights used to load, and the features were complex numbers."""
    path = saved(tmp_path / "uni.pth", {name: tensor.to(kind) for name, tensor in tensors_of_uni().items()})
    with pytest.raises(
        ModelError, match=rf"uni.pth.*'uni'.*mistyped cls_token: {kind} instead of torch.float32"
    ):
        load_file(UNI, path)


def test_bfloat16_weights_are_computed_in_float32(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of_uni().items()}
    save_file(tensors, tmp_path / "uni.safetensors")
    loaded = load_file(UNI, tmp_path / "uni.safetensors")
    assert {tensor.dtype for tensor in loaded.net.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_hash_is_compared_whatever_the_torch_file_is_called(suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"renamed{suffix}", tensors_of_uni())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    other = replace(UNI, published=replace(UNI.published, sha256="0" * 8, file="uni.pth"))
    with pytest.raises(ModelError, match="not the published file of 'uni'"):
        load_file(other, path)
    right = replace(UNI, published=replace(UNI.published, sha256=digest, file="uni.pth"))
    assert load_file(right, path).provenance["sha256"] == digest


# -- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right"),
    [("UNI", "uni"), ("uni2h", "uni2-h"), ("Virchow_2", "virchow2"), ("H-Optimus-0", "h-optimus-0"),
     ("CONCH", "conch"), ("resnet50v1", "resnet50-v1")],
)  # fmt: skip
def test_other_spelling_of_a_name_is_named(name: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"no encoder '{name}'.*Did you mean '{right}'"):
        find_entry(name, unverified=True)


@pytest.mark.parametrize(
    ("name", "right"),
    [("timm:hf-hub:MahmoodLab/UNI", "uni"), ("timm:hf_hub:paige-ai/Virchow2", "virchow2"),
     ("timm:hf-hub:mahmoodlab/uni2-h@main", "uni2-h")],
)  # fmt: skip
def test_encoder_of_the_table_is_not_loaded_around_its_checks(name: str, right: str) -> None:
    """timm would load it from the hub with the arguments of its configuration, and record no licence."""
    with pytest.raises(ConfigError, match=f"is the encoder '{right}'.*Use --encoder {right}"):
        find_entry(name, unverified=True)
    assert find_entry("timm:hf-hub:someone/else") is None


def test_each_encoder_is_named_once_with_weights_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"named twice.*Name each encoder once"):
        open_encoders(["resnet50", "torchvision:resnet50"], "random")
    for missing in ("", "Random", "file:///weights.pth", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"no such weights file.*`pretrained` or `random`"):
            open_encoders(["lobule:tiny"], missing)
    assert with_weights("lobule:tiny", "random") == [("lobule:tiny", "random")]


@pytest.mark.parametrize(
    ("names", "weights", "expected"),
    [
        (["nonsense"], ["random"], "no encoder or torchvision network 'nonsense'"),
        (["timm:nonsense"], ["random"], "timm has no network 'nonsense'"),
        (["lobule:nonsense"], ["random"], "Lobule has no net 'nonsense'"),
        (["uni", "uni"], ["random"], "named twice"),
        (["uni"], ["nowhere.bin"], "no such weights file"),
        (["uni", "keep"], ["random"] * 3, "3 weights for 2 encoders"),
        (["phikon-v2"], ["random"], "--unverified"),
    ],
)
def test_dry_run_refuses_what_the_run_would_refuse(
    names: list[str], weights: list[str], expected: str
) -> None:
    cohort = Cohort((Case("s1", "p1", "slide", "s1.tif"),))
    options = {"encoder": names, "weights": weights, "unverified": False, "mpp": 0.5, "tile": None}
    with pytest.raises(ConfigError, match=expected):
        plan(cohort, "features", options)
    accepted = ["resnet50", "timm:vit_tiny_patch16_224.augreg_in21k", "lobule:tiny", "uni"]
    assert plan(cohort, "features", {**options, "encoder": accepted, "weights": ["random"]}).data["cases"]
