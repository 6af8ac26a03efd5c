"""Scores of each breast, computed from the trunks' features, and the result of an exam."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.findings import Finding
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.images import BrokenView, ExamView
from lobule.nets.four_view import TARGETS, Classifier, ImageWise
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.scanning.contract import ImageSource
from lobule.stitch import State

SIDES = {"left": "L", "right": "R"}
GRADES = ("benign", "malignant")


class Features:
    """The trunks' features by classifier, view and epoch, for the windows that were computed."""

    def __init__(self, epochs: int, members: int = 1) -> None:
        self.epochs, self.members = epochs, members
        self._features: dict[tuple[int, str], dict[int, NDArray[np.float32]]] = {}

    def add(
        self, view: str, epochs: Sequence[int], table: TableReader, members: Sequence[int] = (0,)
    ) -> None:
        """Add the rows of a table, one per epoch, with the features of `members` side by side.

        Failed rows are skipped.
        """
        rows = scored_rows(table, "features")
        for index, member in enumerate(members):
            by_epoch = self._features.setdefault((member, view), {})
            by_epoch |= {epochs[row]: np.split(values, len(members))[index] for row, values in rows.items()}

    @property
    def views(self) -> tuple[str, ...]:
        """Views for which every member has at least one window."""
        return tuple(
            view
            for view in VIEWS
            if all(self._features.get((member, view)) for member in range(self.members))
        )

    def shared_epochs(self, views: Sequence[str]) -> list[int]:
        """Return the epochs for which all members have all these views."""
        required = [(member, view) for member in range(self.members) for view in views]
        return [e for e in range(self.epochs) if all(e in self._features.get(key, {}) for key in required)]

    def of(self, views: Sequence[str], member: int = 0) -> dict[str, Tensor]:
        """Return (epochs, features) of each view, for the epochs that `shared_epochs` returns."""
        shared_epochs = self.shared_epochs(views)
        if not shared_epochs:
            raise ModelError(f"no window of {', '.join(views)} could be scored")
        return {
            view: torch.from_numpy(np.stack([self._features[member, view][epoch] for epoch in shared_epochs]))
            for view in views
        }


def scored_rows(table: TableReader, column: str) -> dict[int, NDArray[np.float32]]:
    """Return a column of the scored rows, by field.

    A chunk in which all rows failed has none of the model's columns.
    """
    rows = {}
    for chunk in table.iterate():
        for field, state, values in zip(chunk["field"], chunk["state"], chunk.get(column, ()), strict=False):
            if state == State.SCORED:
                rows[int(field)] = values
    return rows


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


def exam_result(
    config: Config,
    heads: Sequence[Heads],
    features: Features,
    images: Mapping[str, ImageSource],
    findings: Sequence[Finding],
    painting_metadata: Mapping[str, Any],
) -> Result:
    """Average the members' scores of both breasts, and record their spread over the windows."""
    notes = [f"{name}: {image.error}" for name, image in images.items() if isinstance(image, BrokenView)]
    if config.reads_exams:
        scores, score_metadata = _score_exam(heads, features)
    else:
        scores, score_metadata = _score_views(heads, features)
        notes.insert(0, views_note("the image-wise model", features.views))
    _require_finite(scores)
    metadata = {
        "images": image_metadata(images),
        "model": config.variant,
        **painting_metadata,
        **score_metadata,
    }
    ordered = tuple(sorted(findings, key=lambda finding: -finding.score))
    return Result(scores, ordered, tuple(notes), metadata)


def _require_finite(scores: Mapping[str, float]) -> None:
    not_finite = [f"{name} {score}" for name, score in scores.items() if not math.isfinite(score)]
    if not_finite:
        raise ModelError(
            "the classifier's scores are not finite",
            actual=", ".join(not_finite),
            remedy="The weights are damaged: convert or train the bundle again",
        )


def _score_exam(heads: Sequence[Heads], features: Features) -> tuple[dict[str, float], dict[str, Any]]:
    """Return scores and metadata of classifiers that join views."""
    probabilities = np.stack([head.exam(features.of(VIEWS, member)) for member, head in enumerate(heads)])
    epoch_scores = probabilities.mean(axis=0)
    metadata: dict[str, Any] = {
        "windows": len(epoch_scores),
        "spread": {name: _spread(epoch_scores[:, i]) for i, name in enumerate(TARGETS)},
    }
    if len(heads) > 1:
        metadata["members"] = [
            dict(zip(TARGETS, member.mean(axis=0).tolist(), strict=True)) for member in probabilities
        ]
    return dict(zip(TARGETS, epoch_scores.mean(axis=0).tolist(), strict=True)), metadata


def _score_views(heads: Sequence[Heads], features: Features) -> tuple[dict[str, float], dict[str, Any]]:
    """Return scores and metadata of image-wise classifiers."""
    views: dict[str, NDArray[np.float64]] = {}
    for view in features.views:
        member_scores = [
            head.view(view, features.of([view], member)[view]) for member, head in enumerate(heads)
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


def image_metadata(images: Mapping[str, ImageSource]) -> dict[str, Any]:
    return {name: image.metadata() for name, image in images.items() if isinstance(image, ExamView)}


def _breast_spread(
    views: Mapping[str, NDArray[np.float64]], features: Features
) -> dict[str, dict[str, float]]:
    """Return the spread of each breast's score over the epochs that all of its views have."""
    spread = {}
    for index, grade in enumerate(GRADES):
        for side, letter in SIDES.items():
            side_views = [view for view in views if view.startswith(letter)]
            shared_epochs = features.shared_epochs(side_views)
            if not side_views or not shared_epochs:
                continue
            row_of_epoch = {
                view: {e: i for i, e in enumerate(features.shared_epochs([view]))} for view in side_views
            }
            epoch_scores = [
                np.mean([views[view][row_of_epoch[view][e], index] for view in side_views])
                for e in shared_epochs
            ]
            spread[f"{side}_{grade}"] = _spread(np.array(epoch_scores))
    return spread


def breast_scores(views: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Average the scores (benign, malignant) of the available views of each breast, in `TARGETS` order."""
    scores = {}
    for index, grade in enumerate(GRADES):
        for side, letter in SIDES.items():
            side_scores = [scored[index] for view, scored in views.items() if view.startswith(letter)]
            if side_scores:
                scores[f"{side}_{grade}"] = float(np.mean(side_scores))
    return scores


def views_note(model: str, views: Collection[str]) -> str:
    missing = [view for view in VIEWS if view not in views]
    suffix = f", without {', '.join(missing)}" if missing else ""
    return f"Scored view by view by {model} from {', '.join(views)}{suffix}."


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    return {"std": float(values.std()), "least": float(values.min()), "greatest": float(values.max())}
