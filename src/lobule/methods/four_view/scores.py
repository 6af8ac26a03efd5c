"""Scores of each breast, computed from the trunks' features, and the result of an exam."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.findings import Finding
from lobule.mammograms.breasts import GRADES, SIDES, breast_scores, views_note
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view.config import Config
from lobule.nets.four_view import TARGETS, Classifier, ImageWise
from lobule.results.result import Result
from lobule.scanning.contract import ImageSource
from lobule.scanning.exam_passes import Rows, exam_result


class Features:
    """The trunks' features by classifier, view and epoch, for the windows that were computed."""

    def __init__(self, classifiers: Sequence[int]) -> None:
        self.classifiers = tuple(classifiers)
        self._features: dict[tuple[int, str], dict[int, NDArray[np.float32]]] = {}

    def add(self, view: str, epochs: Sequence[int], rows: Rows, classifiers: Sequence[int]) -> None:
        """Add the rows of a table, one per epoch, with the features of some classifiers side by side."""
        for index, classifier in enumerate(classifiers):
            by_epoch = self._features.setdefault((classifier, view), {})
            by_epoch |= {epochs[i]: np.split(row, len(classifiers))[index] for i, row in rows.items()}

    @property
    def views(self) -> tuple[str, ...]:
        """Views for which every classifier has at least one window."""
        return tuple(
            view for view in VIEWS if all(self._features.get((number, view)) for number in self.classifiers)
        )

    def shared_epochs(self, views: Sequence[str]) -> list[int]:
        """Return the epochs for which all classifiers have all these views."""
        epochs = [
            set(self._features.get((number, view), ())) for number in self.classifiers for view in views
        ]
        return sorted(set.intersection(*epochs)) if epochs else []

    def of(self, views: Sequence[str], classifier: int) -> dict[str, Tensor]:
        """Return (epochs, features) of each view, for the epochs that `shared_epochs` returns."""
        epochs = self.shared_epochs(views)
        if not epochs:
            raise ModelError(f"no window of {', '.join(views)} could be scored")
        return {
            view: torch.from_numpy(np.stack([self._features[classifier, view][epoch] for epoch in epochs]))
            for view in views
        }


class _PassThrough(nn.Module):
    """Replaces the trunks where their features are already computed."""

    def forward(self, view: str, x: Tensor) -> Tensor:
        return x


class Heads:
    """The layers after the trunks, in float64.

    Their cost is negligible, and in float64 the scores do not depend on the number of threads.
    """

    def __init__(self, net: Classifier) -> None:
        trunks = net.four_view_resnet
        try:
            net.four_view_resnet = _PassThrough()  # type: ignore[assignment]
            self.net = copy.deepcopy(net).double().eval().requires_grad_(False)
        finally:
            net.four_view_resnet = trunks

    def exam(self, features: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Return probabilities (epochs, 4) in the order of `TARGETS`."""
        assert not isinstance(self.net, ImageWise)
        outputs = self.net({view: x.double() for view, x in features.items()})
        return np.asarray(self.net.exam_scores(outputs).numpy(), np.float64)

    def view(self, view: str, features: Tensor) -> NDArray[np.float64]:
        """Return probabilities (epochs, 2) of benign and malignant for one view."""
        assert isinstance(self.net, ImageWise)
        outputs = self.net.single(view, features.double())
        return np.asarray(outputs[..., 1].exp().numpy(), np.float64)


def result_of(
    config: Config,
    heads: Sequence[Heads],
    features: Features,
    images: Mapping[str, ImageSource],
    findings: Sequence[Finding],
    painting_metadata: Mapping[str, Any],
) -> Result:
    """Average the scores of both breasts over the classifiers, and record their spread over the windows.

    `heads` are those of every classifier of the bundle, by number.
    """
    notes: tuple[str, ...] = ()
    if config.architecture.joins_views:
        scores, score_metadata = _score_exam(heads, features)
    else:
        scores, score_metadata = _score_views(heads, features)
        notes = (views_note("the image-wise model", features.views),)
    if not_finite := [f"{name} {score}" for name, score in scores.items() if not math.isfinite(score)]:
        raise ModelError(
            "the classifier's scores are not finite",
            actual=", ".join(not_finite),
            remedy="The weights are damaged: convert or train the bundle again",
        )
    metadata = {**painting_metadata, **score_metadata}
    return exam_result(scores, images, findings, config.architecture.variant, metadata, notes)


def _score_exam(heads: Sequence[Heads], features: Features) -> tuple[dict[str, float], dict[str, Any]]:
    """Return scores and metadata of classifiers that join views."""
    probabilities = np.stack(
        [heads[number].exam(features.of(VIEWS, number)) for number in features.classifiers]
    )
    epoch_scores = probabilities.mean(axis=0)
    metadata: dict[str, Any] = {
        "windows": len(epoch_scores),
        "spread": {name: _spread(epoch_scores[:, i]) for i, name in enumerate(TARGETS)},
    }
    if len(probabilities) > 1:
        metadata["members"] = [
            dict(zip(TARGETS, member.mean(axis=0).tolist(), strict=True)) for member in probabilities
        ]
    return dict(zip(TARGETS, epoch_scores.mean(axis=0).tolist(), strict=True)), metadata


def _score_views(heads: Sequence[Heads], features: Features) -> tuple[dict[str, float], dict[str, Any]]:
    """Return scores and metadata of image-wise classifiers."""
    views: dict[str, NDArray[np.float64]] = {}
    for view in features.views:
        member_scores = [
            heads[number].view(view, features.of([view], number)[view]) for number in features.classifiers
        ]
        views[view] = np.mean(member_scores, axis=0)
    metadata: dict[str, Any] = {
        "windows": {view: len(probabilities) for view, probabilities in views.items()},
        "views": {
            view: {
                grade: {"score": float(probabilities[:, i].mean()), **_spread(probabilities[:, i])}
                for i, grade in enumerate(GRADES)
            }
            for view, probabilities in views.items()
        },
        "spread": _breast_spread(views, features),
    }
    return breast_scores(
        {view: probabilities.mean(axis=0).tolist() for view, probabilities in views.items()}
    ), metadata


def _breast_spread(
    views: Mapping[str, NDArray[np.float64]], features: Features
) -> dict[str, dict[str, float]]:
    """Return the spread of each breast's score over the epochs that all of its views have."""
    spread = {}
    for index, grade in enumerate(GRADES):
        for side, letter in SIDES.items():
            side_views = [view for view in views if view.startswith(letter)]
            shared_epochs = features.shared_epochs(side_views)
            if shared_epochs:
                scores = [
                    views[view][np.isin(features.shared_epochs([view]), shared_epochs), index]
                    for view in side_views
                ]
                spread[f"{side}_{grade}"] = _spread(np.mean(scores, axis=0))
    return spread


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    return {"std": float(values.std()), "least": float(values.min()), "greatest": float(values.max())}
