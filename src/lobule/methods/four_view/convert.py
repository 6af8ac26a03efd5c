"""Published checkpoints as bundles: the classifier, and the patch network where it reads heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lobule.bundles import Bundle, write_bundle
from lobule.errors import BundleError, ConfigError, ModelError
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.predictor import build, weights_of
from lobule.nets.four_view import TARGETS
from lobule.nets.four_view_weights import GENUINE, git_blob_id, load_published, resolved


def convert(
    weights: str | Path, out: str | Path, *, patch: str | Path | None = None, **settings: Any
) -> Bundle:
    """Make a bundle of a published classifier; `patch` is the patch network's checkpoint.

    Variant and channels are read off the tensors. `settings` are those of `Config`. Files are PyTorch
    checkpoints, of which nothing but tensors is read, or safetensors.
    """
    checkpoint, source = _read(weights)
    variant, heatmaps = _kind(checkpoint, weights)
    config = Config(**{**settings, "variant": variant, "heatmaps": heatmaps})
    net, patch_net = build(config)
    _fill(net, checkpoint, weights)
    provenance: dict[str, Any] = {"classifier": source}
    if patch_net is None and patch is not None:
        raise ConfigError(
            "this classifier reads no heatmaps, so it has no use for a patch network",
            subject=weights,
            remedy="Leave --patch out, or convert the checkpoint with heatmaps",
        )
    if patch_net is not None:
        if patch is None:
            raise ConfigError(
                "this classifier reads heatmaps, which a patch network has to paint",
                subject=weights,
                remedy="Give the patch network's checkpoint with --patch",
            )
        patch_checkpoint, provenance["patch"] = _read(patch)
        _fill(patch_net, patch_checkpoint, patch)
    bundle = Bundle("four_view", config.to_dict(), TARGETS, None, provenance=provenance)
    return write_bundle(out, bundle, weights_of(net, patch_net))


def _read(path: str | Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """A checkpoint, and what tells which file it came from."""
    import torch
    from safetensors.torch import load_file

    file = Path(path)
    if not file.is_file():
        raise ConfigError("there is no such weights file", subject=path)
    blob = git_blob_id(file.read_bytes())
    try:
        loaded: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # both libraries raise types of their own
        raise BundleError(
            "the weights cannot be read", subject=path, found=(str(error) or repr(error)).splitlines()[0]
        ) from error
    inner = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise BundleError("not a checkpoint of tensors", subject=path)
    genuine = GENUINE.get(blob[:8], "none of the published files")
    return inner, {"source": file.name, "git_blob": blob, "published_as": genuine}


def _kind(checkpoint: Mapping[str, Any], path: str | Path) -> tuple[str, bool]:
    """Variant, and whether it reads heatmaps, from the tensors' names and shapes."""
    try:
        first = resolved(checkpoint).get("four_view_resnet.cc.first_conv.weight")
    except ModelError as error:
        raise _of_file(error, path) from error
    if first is None or first.ndim != 4 or first.shape[1] not in (1, 3):
        raise BundleError(
            "not a four-view classifier",
            subject=path,
            expected="a trunk of 1 or 3 channels under four_view_resnet",
            found=f"tensors such as {next(iter(checkpoint), 'none')}",
        )
    return ("image_wise" if "fc1_lcc.weight" in checkpoint else "view_wise"), first.shape[1] == 3


def _fill(net: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    try:
        load_published(net, checkpoint)
    except ModelError as error:
        raise _of_file(error, path) from error


def _of_file(error: ModelError, path: str | Path) -> BundleError:
    return BundleError(error.what, subject=path, expected=error.expected, found=error.found)
