"""Conversion of published checkpoints: all tensors are checked, code is not executed, hashes are recorded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lobule.bundles import read_bundle
from lobule.errors import BundleError, ConfigError
from lobule.methods.four_view import convert, load
from lobule.nets.four_view_weights import git_blob_id
from tests.methods.four_view.configs import changed
from tests.methods.four_view.support import SMALL, nets

WIDTHS = {"architecture.widths": SMALL.architecture.widths}
PATCH = {
    f"architecture.{name}": getattr(SMALL.architecture, name)
    for name in ("patch_growth", "patch_blocks", "patch_first_width")
}


def published(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict like that of the published files: each trunk has three names, without counters."""
    state = {}
    for key, tensor in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        state[key] = tensor
        for angle, aliases in (("cc", ("l_cc", "r_cc")), ("mlo", ("l_mlo", "r_mlo"))):
            if key.startswith(f"four_view_resnet.{angle}."):
                for alias in aliases:
                    state[key.replace(f".{angle}.", f".{alias}.", 1)] = tensor.clone()
    return state


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("variant", ["view_wise", "image_wise"])
def test_published_classifier_is_converted(tmp_path: Path, variant: str) -> None:
    net, _ = nets(changed(SMALL, variant=variant))
    file = saved(tmp_path / "model.p", {"model": published(net)}, _use_new_zipfile_serialization=False)
    bundle = convert(file, tmp_path / "bundle", settings=WIDTHS)
    architecture = bundle.config["architecture"]
    assert (bundle.method, architecture["variant"], architecture["heatmaps"]) == (
        "four_view",
        variant,
        False,
    )
    assert bundle.mpp is None and bundle.classes[2] == "left_malignant"
    source = bundle.provenance["classifier"]
    assert source["git_blob"] == git_blob_id(file.read_bytes())
    assert source["published_as"] == "none of the published files"
    loaded = load(read_bundle(tmp_path / "bundle"))
    for key, tensor in net.state_dict().items():
        assert torch.equal(loaded.nets.members[0].state_dict()[key], tensor), key
    fc = "fc1_cc" if variant == "view_wise" else "fc1_rmlo"
    assert torch.equal(getattr(loaded.heads[0].net, fc).weight.float(), getattr(net, fc).weight)


def test_classifier_with_heatmaps_needs_its_patch_network(tmp_path: Path) -> None:
    net, patch_net = nets(changed(SMALL, heatmaps=True))
    assert patch_net is not None
    file = saved(tmp_path / "model.p", {"model": published(net)})
    patch = saved(tmp_path / "patch.p", patch_net.state_dict())
    with pytest.raises(ConfigError, match="--patch"):
        convert(file, tmp_path / "bundle", settings=WIDTHS)
    bundle = convert(file, tmp_path / "bundle", patch=patch, settings={**WIDTHS, **PATCH})
    assert bundle.config["architecture"]["heatmaps"] and set(bundle.provenance) >= {"classifier", "patch"}
    loaded = load(bundle)
    assert len(loaded.nets.patch_nets) == 1
    for key, tensor in patch_net.state_dict().items():
        assert torch.equal(loaded.nets.patch_nets[0].state_dict()[key], tensor), key
    plain, _ = nets(SMALL)
    with pytest.raises(ConfigError, match="no heatmaps"):
        convert(saved(tmp_path / "plain.p", published(plain)), tmp_path / "b", patch=patch, settings=WIDTHS)


def test_missing_extra_and_conflicting_tensors_are_errors(tmp_path: Path) -> None:
    net, _ = nets(SMALL)
    state = published(net)
    incomplete = {key: tensor for key, tensor in state.items() if key != "fc1_mlo.bias"}
    with pytest.raises(BundleError, match=r"missing: fc1_mlo\.bias"):
        convert(saved(tmp_path / "a.p", incomplete), tmp_path / "b", settings=WIDTHS)
    with pytest.raises(BundleError, match="not of the network: extra"):
        convert(saved(tmp_path / "b.p", {**state, "extra": torch.ones(1)}), tmp_path / "b", settings=WIDTHS)
    key = "four_view_resnet.l_cc.final_bn.bias"
    with pytest.raises(BundleError, match="two names of the same trunk"):
        convert(saved(tmp_path / "c.p", {**state, key: state[key] + 1}), tmp_path / "b", settings=WIDTHS)
    with pytest.raises(BundleError, match="not a four-view classifier"):
        convert(saved(tmp_path / "d.p", {"fc.weight": torch.ones(2, 2)}), tmp_path / "b")
    with pytest.raises(ConfigError, match="does not contain plain weights"):
        convert(saved(tmp_path / "e.p", [1, 2]), tmp_path / "b")
    with pytest.raises(ConfigError, match="no such weights"):
        convert(tmp_path / "absent.p", tmp_path / "b")
    assert not (tmp_path / "b" / "model.json").exists()


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    file = saved(tmp_path / "evil.p", {"model": Evil(tmp_path / "was-run")})
    with pytest.raises(ConfigError, match="cannot be read"):
        convert(file, tmp_path / "bundle")
    assert not (tmp_path / "was-run").exists()
