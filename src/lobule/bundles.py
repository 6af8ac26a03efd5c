"""Bundles: trained models on disk, `model.json` with safetensors beside it; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule import __version__
from lobule.errors import BundleError, ConfigError, LobuleError, ResultsError, UsageError
from lobule.files import make_folder, read_json, write_atomic, write_json, write_text

if TYPE_CHECKING:
    import torch

FORMAT = "lobule-bundle/1"
MODEL = "model.json"
WEIGHTS = "weights.safetensors"

SOUND: Mapping[str, Callable[[Any], bool]] = {
    "method": lambda method: isinstance(method, str),
    "classes": lambda classes: all(isinstance(name, str) for name in classes),
    "mpp": lambda mpp: mpp is None or (_is_number(mpp) and mpp > 0),
    "metrics": lambda metrics: isinstance(metrics, dict),
    "provenance": lambda provenance: isinstance(provenance, dict),
    "patients": lambda patients: all(isinstance(patient, str) for patient in patients),
    "files": lambda files: all(isinstance(digest, str) for digest in files.values()),
}
"""What the fields of `model.json` have to be."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Bundle:
    """What `model.json` says. `files` are the hashes of everything beside it."""

    method: str
    config: Mapping[str, Any]
    classes: tuple[str, ...]
    mpp: float | None
    """µm/px that the model wants; None where the method has no such thing."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    patients: tuple[str, ...] = ()
    """Hashes of the training patients, so that an evaluation can refuse to leak."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """What makes its scores probabilities at a site, and thresholds; empty where nothing does."""
    files: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def fingerprint(self) -> str:
        """One hash over everything that decides what the model says."""
        identity = [self.method, repr(sorted(self.config.items())), *self.classes, repr(self.mpp)]
        identity += [f"{name}={digest}" for name, digest in sorted(self.files.items())]
        if self.calibration:
            identity.append(json.dumps(self.calibration, sort_keys=True))
        return hashlib.sha256("\n".join(identity).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, its hash checked."""
        if self.path is None or name not in self.files:
            raise BundleError(f"the bundle has no file {name}", subject=self.path)
        path = self.path / name
        digest = _hash(path)
        if digest != self.files[name]:
            raise BundleError(
                "the file is not the one the bundle was made with",
                subject=path,
                expected=f"sha256 {self.files[name]}",
                actual=digest,
                remedy="Copy the bundle again from where it came",
            )
        return path

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors, as they were saved."""
        from safetensors.torch import load_file

        try:
            return dict(load_file(self.file(WEIGHTS)))
        except LobuleError:
            raise
        except Exception as error:  # safetensors raises its own, undocumented types
            raise BundleError("the weights cannot be read", subject=self.path, actual=str(error)) from error


def patient_hash(patient: str) -> str:
    """A patient as bundles remember them: recognisable to who has the name, unreadable to others."""
    return hashlib.sha256(f"lobule-patient:{patient}".encode()).hexdigest()[:16]


def write_bundle(
    path: str | Path,
    bundle: Bundle,
    weights: Mapping[str, torch.Tensor] | None = None,
    texts: Mapping[str, str] | None = None,
    copies: Mapping[str, Path] | None = None,
) -> Bundle:
    """Write a bundle; `model.json` comes last, so a folder that has one is whole."""
    from safetensors.torch import save_file

    root = make_folder(path)
    files: dict[str, str] = {}
    if weights is not None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        with write_atomic(root / WEIGHTS) as temporary_path:
            save_file(tensors, temporary_path)
        files[WEIGHTS] = _hash(root / WEIGHTS)
    for name, text in (texts or {}).items():
        _check_name(name, root)
        write_text(root / name, text)
        files[name] = _hash(root / name)
    for name, source in (copies or {}).items():
        _check_name(name, root)
        with write_atomic(root / name) as temporary_path:
            shutil.copyfile(source, temporary_path)
        files[name] = _hash(root / name)
    model = {
        "format": FORMAT,
        "method": bundle.method,
        "config": dict(bundle.config),
        "classes": list(bundle.classes),
        "mpp": bundle.mpp,
        "metrics": dict(bundle.metrics),
        "provenance": {"lobule": __version__, **bundle.provenance},
        "patients": sorted(bundle.patients),
        **({"calibration": dict(bundle.calibration)} if bundle.calibration else {}),
        "files": files,
        "research_use": "Research use only: not a medical device, not for diagnosis.",
    }
    write_json(root / MODEL, model)
    return read_bundle(root)


def read_bundle(path: str | Path) -> Bundle:
    """Read `model.json`; the files beside it are checked when they are used."""
    root = Path(path)
    if not (root / MODEL).is_file():
        raise UsageError(
            "not a bundle",
            subject=path,
            expected=f"a folder with {MODEL}",
            remedy="Train one with `lobule train`, or convert one with `lobule weights convert`",
        )
    try:
        model = read_json(root / MODEL)
        if model["format"] != FORMAT:
            raise BundleError(
                "a bundle of another format", subject=path, expected=FORMAT, actual=model["format"]
            )
        for field_name, kind in (("files", dict), ("config", dict), ("classes", list), ("patients", list)):
            if not isinstance(model[field_name], kind):
                raise BundleError(f"{MODEL} is damaged: {field_name} is no {kind.__name__}", subject=path)
        for name in model["files"]:
            _check_name(name, root)
        if wrong := [name for name, holds in SOUND.items() if not holds(model[name])]:
            raise BundleError(
                f"{MODEL} is damaged",
                subject=path,
                actual=f"nothing of use as {', '.join(wrong)}",
                remedy="Copy the bundle again from where it came",
            )
        return Bundle(
            method=model["method"],
            config=model["config"],
            classes=tuple(model["classes"]),
            mpp=model["mpp"],
            metrics=model["metrics"],
            provenance=model["provenance"],
            patients=tuple(model["patients"]),
            calibration=_calibration(model, root),
            files=model["files"],
            path=root,
        )
    except (KeyError, TypeError, AttributeError, ResultsError) as error:
        raise BundleError(f"{MODEL} is damaged: {error!s}", subject=path) from error


def _calibration(model: Mapping[str, Any], root: Path) -> Mapping[str, Any]:
    calibration = model.get("calibration", {})
    if not isinstance(calibration, dict):
        raise BundleError(f"{MODEL} is damaged", subject=root, actual="nothing of use as calibration")
    return calibration


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where the message is empty."""
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__


def plain_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Plain tensors of a safetensors or torch file; nothing in it is run."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError("there is no such weights file", subject=path)
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many undocumented types
        raise ConfigError("the weights cannot be read", subject=path, actual=first_line(error)) from error
    state = loaded.get("state_dict", loaded.get("model", loaded)) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError("these are not plain weights", subject=path, expected="names and tensors")
    return dict(state)


def _check_name(name: str, root: Path) -> None:
    # a bundle from elsewhere must not name files outside its folder
    if not _PLAIN_NAME.fullmatch(name):
        raise BundleError(f"a file name that is not plain: {name!r}", subject=root)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise BundleError(
            "a file of the bundle cannot be read", subject=path, actual=str(error.strerror)
        ) from error
    return digest.hexdigest()
