"""The catalogue of pretrained weights for training and of published weights for conversion."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lobule.encoders import ENCODERS


@dataclass(frozen=True)
class Weights:
    """A published file. It is recognised by the beginning of its hash, in `sha256` or `git_blob`."""

    name: str
    methods: tuple[str, ...]
    file: str
    source: str
    licence: str
    sha256: str | None = None
    git_blob: str | None = None
    fetched: bool = False
    """Whether a backbone library downloads the file at first use; users must get other files themselves."""

    def genuine(self, sha256: str, git_blob: str) -> bool:
        if self.sha256 is not None:
            return sha256.startswith(self.sha256)
        return self.git_blob is not None and git_blob.startswith(self.git_blob)


def _imagenet(name: str, methods: tuple[str, ...], sha256: str) -> Weights:
    file = f"{'inception_v3_google' if name == 'inception_v3' else name}-{sha256}.pth"
    licence = "BSD-3-Clause (torchvision); images for research"
    return Weights(name, methods, file, "torchvision, ImageNet-1k", licence, sha256, fetched=True)


_FOUR_VIEW = ("nyukat/breast_cancer_classifier, models/", "AGPL-3.0 (the repository)")
_GMIC = ("nyukat/GMIC, models/", "AGPL-3.0 (the repository)")


def _published(name: str, file: str, home: tuple[str, str], git_blob: str) -> Weights:
    method = "gmic" if home is _GMIC else "four_view"
    return Weights(name, (method,), file, home[0], home[1], git_blob=git_blob)


CATALOG: tuple[Weights, ...] = (
    _imagenet("vgg16", ("scannet", "rakhlin"), "397923af"),
    _imagenet("resnet50", ("rakhlin", "chowder"), "0676ba61"),
    _imagenet("inception_v3", ("rakhlin",), "0cc3c7bd"),
    _imagenet("resnet18", ("reverse_distillation",), "f37072fd"),
    _imagenet("wide_resnet50_2", ("reverse_distillation",), "95faca4d"),
    _imagenet("densenet121", ("four_view",), "a639ec97"),
    _published("four_view image-only", "sample_image_model.p", _FOUR_VIEW, "286ec862"),
    _published("four_view with heatmaps", "sample_imageheatmaps_model.p", _FOUR_VIEW, "312ea110"),
    _published("four_view patches", "sample_patch_model.p", _FOUR_VIEW, "44ce5238"),
    _published("four_view one image", "ImageOnly__ModeImage_weights.p", _FOUR_VIEW, "a903386d"),
    _published("four_view one image, heatmaps", "ImageHeatmaps__ModeImage_weights.p", _FOUR_VIEW, "75c17172"),
    _published("gmic 1", "sample_model_1.p", _GMIC, "04e47337"),
    _published("gmic 2", "sample_model_2.p", _GMIC, "98074a24"),
    _published("gmic 3", "sample_model_3.p", _GMIC, "9304d4b3"),
    _published("gmic 4", "sample_model_4.p", _GMIC, "4e87f645"),
    _published("gmic 5", "sample_model_5.p", _GMIC, "ec942dd6"),
)  # fmt: skip


def licences() -> dict[str, str]:
    """Return the licences of the pretrained networks by their names."""
    of_encoders = {entry.name: entry.licence.name for entry in ENCODERS.values()}
    return of_encoders | {weights.name: weights.licence for weights in CATALOG if weights.fetched}


def hashes(path: str | Path) -> tuple[str, str]:
    """Return the SHA-256 and the git blob id of a file; the file is read once."""
    plain = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % Path(path).stat().st_size, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            plain.update(block)
            blob.update(block)
    return plain.hexdigest(), blob.hexdigest()
