"""Bundles: trained models on disk, as `model.json` and safetensors files. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

from lobule import __version__
from lobule.errors import BundleError, ConfigError, LobuleError, ModelError, ResultsError, UsageError
from lobule.files import make_folder, read_json, write_atomic, write_json, write_text
from lobule.fingerprints import digest_of

if TYPE_CHECKING:
    import torch

FORMAT = "lobule-bundle/1"
MODEL = "model.json"
WEIGHTS = "weights.safetensors"
INT8 = "int8-"
"""The names of the files of int8 models begin with this."""

IS_VALID: Mapping[str, Callable[[Any], bool]] = {
    "method": lambda method: isinstance(method, str),
    "classes": lambda classes: all(isinstance(name, str) for name in classes),
    "mpp": lambda mpp: mpp is None or (_is_number(mpp) and mpp > 0),
    "metrics": lambda metrics: isinstance(metrics, dict),
    "provenance": lambda provenance: isinstance(provenance, dict),
    "patients": lambda patients: all(isinstance(patient, str) for patient in patients),
    "files": lambda files: all(isinstance(digest, str) for digest in files.values()),
}
"""Checks of the fields of `model.json`."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Fillable(Protocol):
    """A net, or another value with tensors; `RuntimeError` if the tensors do not fit."""

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], /) -> object: ...


@dataclass(frozen=True)
class Bundle:
    """The contents of `model.json`. `files` contains the hashes of all other files of the bundle."""

    method: str
    config: Mapping[str, Any]
    classes: tuple[str, ...]
    mpp: float | None
    """µm/px of the input of the model; None if the method does not use one."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    patients: tuple[str, ...] = ()
    """Hashes of the training patients, so that an evaluation can refuse to test on them."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """Calibration of the scores to the probabilities of a site, with thresholds; empty without one."""
    files: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the output of the model."""
        identity = [self.method, repr(sorted(self.config.items())), *self.classes, repr(self.mpp)]
        identity += [f"{name}={digest}" for name, digest in sorted(self.files.items())]
        if self.calibration:
            identity.append(json.dumps(self.calibration, sort_keys=True))
        return hashlib.sha256("\n".join(identity).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle, after checking its hash."""
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

    @property
    def has_int8(self) -> bool:
        """Whether `lobule weights quantize` wrote this bundle."""
        return any(name.startswith(INT8) for name in self.files)

    @property
    def int8_folder(self) -> Path | None:
        """The folder of int8 models, written by `lobule weights quantize`; None in other bundles.

        Raises:
            BundleError: One of the models was changed.
        """
        names = [name for name in self.files if name.startswith(INT8)]
        for name in names:
            self.file(name)
        return self.path if names else None

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the weights file."""
        from safetensors.torch import load_file

        try:
            return dict(load_file(self.file(WEIGHTS)))
        except LobuleError:
            raise
        except Exception as error:  # safetensors raises undocumented types of errors.
            raise BundleError("the weights cannot be read", subject=self.path, actual=str(error)) from error

    def fill(self, net: Fillable, name: str) -> None:
        """Load the tensors of the weights file into a net; `name` describes it in the error message.

        Raises:
            ModelError: The net has other tensors.
        """
        try:
            net.load_state_dict(self.weights())
        except RuntimeError as error:
            raise ModelError(
                f"the weights do not fit the architecture {name}", subject=self.path, actual=str(error)
            ) from error


def patient_hash(patient: str) -> str:
    """Return the hash of a patient: bundles can recognise the patient without containing the name."""
    return hashlib.sha256(f"lobule-patient:{patient}".encode()).hexdigest()[:16]


class TrainingRecord(TypedDict, total=False):
    """What a bundle states about its training."""

    patients: Sequence[str]
    """The patients of the training; the bundle stores only their hashes."""
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]


def trained_bundle(
    method: str,
    config: Mapping[str, Any],
    classes: tuple[str, ...],
    mpp: float | None,
    *,
    calibration: Mapping[str, Any] | None = None,
    **record: Unpack[TrainingRecord],
) -> Bundle:
    """Return the contents of `model.json` for a model and the record of its training."""
    patients = tuple(patient_hash(patient) for patient in record.get("patients", ()))
    metrics, provenance = record.get("metrics", {}), record.get("provenance", {})
    return Bundle(method, config, classes, mpp, metrics, provenance, patients, calibration or {})


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as a safetensors file."""
    from safetensors.torch import save_file

    copied = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with write_atomic(path) as temporary_path:
        save_file(copied, temporary_path)


def write_bundle(
    path: str | Path,
    bundle: Bundle,
    weights: Mapping[str, torch.Tensor] | None = None,
    texts: Mapping[str, str] | None = None,
    copies: Mapping[str, Path] | None = None,
) -> Bundle:
    """Write a bundle. `model.json` is written last, so a folder that has one is complete.

    Args:
        path: Folder of the bundle.
        bundle: The contents of `model.json`, except for the hashes of files.
        weights: Tensors for the weights file.
        texts: Text files by name.
        copies: Files to copy, by their name in the bundle.

    Returns:
        The bundle as read back from disk.
    """
    root = make_folder(path)
    files: dict[str, str] = {}
    if weights is not None:
        write_tensors(root / WEIGHTS, weights)
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


def check_no_bundle(path: str | Path, fresh: bool) -> None:
    """Raise an error if a folder contains a bundle that would be replaced, unless `fresh` allows it."""
    if (Path(path) / MODEL).exists() and not fresh:
        raise UsageError(
            "the folder contains a bundle already",
            subject=path,
            remedy="Pass --fresh to replace it, or choose another --out",
        )


def no_int8_models() -> ConfigError:
    """Return the error of a scan in int8 with a bundle that was not quantised."""
    return ConfigError(
        "this bundle has no int8 models",
        remedy="Write a bundle that has some: lobule weights quantize BUNDLE COHORT --out DIR",
    )


def read_bundle(path: str | Path, method: str | None = None) -> Bundle:
    """Read a bundle, of one method if it is named. Its other files are checked when they are used.

    Raises:
        ConfigError: The bundle is of another method.
        UsageError: The folder is not a bundle.
        BundleError: `model.json` is damaged or has another format.
    """
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
                "the bundle has another format", subject=path, expected=FORMAT, actual=model["format"]
            )
        for field_name, kind in (("files", dict), ("config", dict), ("classes", list), ("patients", list)):
            if not isinstance(model[field_name], kind):
                raise BundleError(f"{MODEL} is damaged: {field_name} is not a {kind.__name__}", subject=path)
        for name in model["files"]:
            _check_name(name, root)
        if wrong := [name for name, holds in IS_VALID.items() if not holds(model[name])]:
            raise BundleError(
                f"{MODEL} is damaged",
                subject=path,
                actual=f"invalid values of {', '.join(wrong)}",
                remedy="Copy the bundle again from where it came",
            )
        if method not in (None, model["method"]):
            raise ConfigError(
                "the bundle is of another method", subject=path, expected=method, actual=model["method"]
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
        raise BundleError(f"{MODEL} is damaged", subject=root, actual="invalid value of calibration")
    return calibration


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__


def read_weights(path: str | Path, failure: type[LobuleError] = ConfigError) -> Any:
    """Read a safetensors or torch file, without running code from the file.

    Raises:
        ConfigError: There is no such file.
        LobuleError: The file cannot be read; the error is of the type `failure`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            "there is no such weights file",
            subject=path,
            expected="the path of a file on this machine",
            remedy="Check the path; addresses such as https:// are not downloaded",
        )
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The readers raise many undocumented types of errors.
        raise failure(
            "the weights cannot be read", subject=path, actual=_content(path, error), remedy=_remedy(error)
        ) from error


def _content(path: Path, error: Exception) -> str:
    """What a file contains that could not be read as weights."""
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if not start and path.stat().st_size == 0:
        return "an empty file"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, perhaps that of a login"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file itself; `git lfs pull` fetches it"
    if (name := _object_in_pickle(error)) is not None:
        return f"an object `{name}` besides the tensors, which is not loaded, because it could run code"
    if isinstance(error, pickle.UnpicklingError):  # the text of torch recommends to load the file unsafely
        return "no torch file, or one with contents that are not loaded because they could run code"
    return first_line(error)


def _object_in_pickle(error: Exception) -> str | None:
    """The class or function that a torch file contains besides tensors, if it was refused because of it."""
    match = re.search(r"Unsupported (?:global|class)\S*:? (?:GLOBAL )?([\w.]+)", str(error))
    return match[1] if match and isinstance(error, pickle.UnpicklingError) else None


def _remedy(error: Exception) -> str | None:
    if _object_in_pickle(error) is None:
        return None
    return "Use a file that contains only tensors, as `torch.save(network.state_dict(), FILE)` writes it"


def plain_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors or torch file, without running code from the file."""
    import torch

    loaded = read_weights(path)
    state = loaded.get("state_dict", loaded.get("model", loaded)) if isinstance(loaded, Mapping) else None
    is_named = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )
    if not isinstance(state, Mapping) or not is_named:
        raise ConfigError("the file does not contain plain weights", subject=path, expected="tensors by name")
    return dict(state)


def _check_name(name: str, root: Path) -> None:
    # A bundle from an untrusted source must not refer to files outside its folder.
    if not _PLAIN_NAME.fullmatch(name):
        raise BundleError(f"the file name {name!r} is not allowed in a bundle", subject=root)


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return digest_of(file)
    except OSError as error:
        raise BundleError(
            "a file of the bundle cannot be read", subject=path, actual=str(error.strerror)
        ) from error
