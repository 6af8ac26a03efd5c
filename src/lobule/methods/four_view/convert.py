"""Conversion of published checkpoints to bundles, and combination of several models in one bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lobule.bundles import MODEL, Bundle, read_bundle, write_bundle
from lobule.errors import BundleError, ConfigError, ModelError
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.members import Nets, build, build_all, fill, weights_of_all
from lobule.methods.four_view.start import FIXED
from lobule.nets.four_view import TARGETS, Classifier
from lobule.nets.four_view_weights import GENUINE, git_blob_id, load_published, resolved

SHARED = (*(name for name in FIXED if name != "variant"), "epochs", "augmentation", "pixels")
"""Settings that must be equal for all members of a bundle, because a bundle has only one config."""

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, eq=False)
class _LoadedModel:
    """The classifiers read from one checkpoint or bundle."""

    path: str | Path
    config: Config
    nets: Nets
    source: dict[str, Any]
    patients: tuple[str, ...] = ()


def convert(weights: Paths, out: str | Path, *, patch: str | Path | None = None, **settings: Any) -> Bundle:
    """Convert published checkpoints, or combine existing bundles, into one bundle.

    The scores of several classifiers are averaged. Image-wise classifiers next to classifiers of another
    variant score the exams that lack a view. The variant and the number of input channels are read from the
    tensors.

    Args:
        weights: One or several PyTorch checkpoints, safetensors files or four-view bundles. Only tensors are
            read from a checkpoint.
        out: Folder of the new bundle.
        patch: Checkpoint of the patch network, for classifiers that read heatmaps.
        **settings: Other fields of `Config`.

    Returns:
        The bundle that was written.

    Raises:
        ConfigError: if the classifiers do not fit together, or if `patch` is missing or not needed.
        BundleError: if a file is not a four-view checkpoint.
    """
    paths = [weights] if isinstance(weights, str | Path) else list(weights)
    patch_checkpoint, patch_source = (None, None) if patch is None else read_checkpoint(patch)
    models = [_load_model(path, patch_checkpoint, patch, settings) for path in paths]
    if patch is not None and not any(model.nets.patch_nets for model in models):
        raise ConfigError(
            "a patch network was given, but the classifier reads no heatmaps",
            subject=paths[0],
            remedy="Remove --patch, or convert a checkpoint that reads heatmaps",
        )
    config, nets = _combine(models)
    provenance: dict[str, Any] = {"classifier": models[0].source}
    if len(models) > 1:
        provenance = {"classifiers": [model.source for model in models]}
    if patch_source is not None:
        provenance["patch"] = patch_source
    patients = tuple(sorted({patient for model in models for patient in model.patients}))
    bundle = Bundle("four_view", config.to_dict(), TARGETS, None, provenance=provenance, patients=patients)
    return write_bundle(out, bundle, weights_of_all(nets))


def _load_model(
    path: str | Path,
    patch_checkpoint: Mapping[str, Any] | None,
    patch: str | Path | None,
    settings: Mapping[str, Any],
) -> _LoadedModel:
    if (Path(path) / MODEL).is_file():
        return _load_bundle(read_bundle(path))
    checkpoint, source = read_checkpoint(path)
    variant, heatmaps = _detect_variant(checkpoint, path)
    config = Config(**{**settings, "variant": variant, "heatmaps": heatmaps})
    net, patch_net = build(config)
    load_tensors(net, checkpoint, path)
    if patch_net is not None:
        if patch_checkpoint is None or patch is None:
            raise ConfigError(
                "this classifier reads heatmaps and needs the patch network that computes them",
                subject=path,
                remedy="Pass the patch network's checkpoint with --patch",
            )
        load_tensors(patch_net, patch_checkpoint, patch)
    return _LoadedModel(path, config, Nets((net,), (), () if patch_net is None else (patch_net,)), source)


def _load_bundle(bundle: Bundle) -> _LoadedModel:
    if bundle.method != "four_view":
        raise ConfigError(
            "the bundle is of another method", subject=bundle.path, expected="four_view", actual=bundle.method
        )
    assert bundle.path is not None
    config = Config.from_dict(bundle.config)
    nets = build_all(config)
    fill(nets, bundle.weights(), bundle, config)
    source = {"source": bundle.path.name, "fingerprint": bundle.fingerprint}
    return _LoadedModel(bundle.path, config, nets, source, bundle.patients)


def _combine(models: Sequence[_LoadedModel]) -> tuple[Config, Nets]:
    """Put all classifiers into one bundle. Equal patch networks are stored once."""
    first = next((model.config for model in models if model.config.reads_exams), models[0].config)
    members: list[tuple[Classifier, int]] = []
    alone: list[tuple[Classifier, int]] = []
    patch_nets: list[nn.Module] = []
    for model in models:
        _require_equal_settings(first, model)
        patch_net_indices = [_index_of_patch_net(net, patch_nets) for net in model.nets.patch_nets] or [0]
        model_patch_of = model.config.patch_of or (0,) * (len(model.nets.members) + len(model.nets.alone))
        for number, net in enumerate((*model.nets.members, *model.nets.alone)):
            is_member = number < len(model.nets.members) and model.config.variant == first.variant
            (members if is_member else alone).append((net, patch_net_indices[model_patch_of[number]]))
    patch_of = tuple(index for _, index in (*members, *alone))
    config = replace(
        first, members=len(members), alone=len(alone), patch_of=patch_of if len(patch_nets) > 1 else ()
    )
    return config, Nets(tuple(n for n, _ in members), tuple(n for n, _ in alone), tuple(patch_nets))


def _require_equal_settings(first: Config, model: _LoadedModel) -> None:
    if model.config.variant not in (first.variant, "image_wise"):
        raise ConfigError(
            "classifiers of several variants cannot be averaged",
            subject=model.path,
            expected=first.variant,
            actual=model.config.variant,
        )
    for name in SHARED:
        expected, actual = getattr(first, name), getattr(model.config, name)
        if expected != actual:
            raise ConfigError(
                f"the classifiers of one bundle must agree in {name}",
                subject=model.path,
                expected=str(expected),
                actual=str(actual),
            )


def _index_of_patch_net(net: nn.Module, patch_nets: list[nn.Module]) -> int:
    """Return the index of a patch network in `patch_nets`, and append it if it is new."""
    state = net.state_dict()
    for index, other in enumerate(patch_nets):
        other_state = other.state_dict()
        if all(bool((other_state[name] == tensor).all()) for name, tensor in state.items()):
            return index
    patch_nets.append(net)
    return len(patch_nets) - 1


def read_checkpoint(path: str | Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read the tensors of a checkpoint, and the file name and hashes that identify it."""
    import torch
    from safetensors.torch import load_file

    file = Path(path)
    if not file.is_file():
        raise ConfigError("there is no such weights file", subject=path)
    git_blob = git_blob_id(file.read_bytes())
    try:
        loaded: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # both libraries raise their own error types
        raise BundleError(
            "the weights cannot be read", subject=path, actual=(str(error) or repr(error)).splitlines()[0]
        ) from error
    tensors = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BundleError("the file is not a checkpoint of tensors", subject=path)
    published_name = GENUINE.get(git_blob[:8], "none of the published files")
    return tensors, {"source": file.name, "git_blob": git_blob, "published_as": published_name}


def _detect_variant(checkpoint: Mapping[str, Any], path: str | Path) -> tuple[str, bool]:
    """Detect the variant, and whether it reads heatmaps, from the names and shapes of the tensors."""
    try:
        first = resolved(checkpoint).get("four_view_resnet.cc.first_conv.weight")
    except ModelError as error:
        raise _name_file(error, path) from error
    if first is None or first.ndim != 4 or first.shape[1] not in (1, 3):
        raise BundleError(
            "the file is not a four-view classifier",
            subject=path,
            expected="a trunk with 1 or 3 input channels under four_view_resnet",
            actual=f"tensors such as {next(iter(checkpoint), 'none')}",
        )
    return ("image_wise" if "fc1_lcc.weight" in checkpoint else "view_wise"), first.shape[1] == 3


def load_tensors(net: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    try:
        load_published(net, checkpoint)
    except ModelError as error:
        raise _name_file(error, path) from error


def _name_file(error: ModelError, path: str | Path) -> BundleError:
    return BundleError(error.problem, subject=path, expected=error.expected, actual=error.actual)
