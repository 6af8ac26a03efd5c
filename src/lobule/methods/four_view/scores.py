"""From the trunk's features to the scores of each breast, and to what a result says of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.engines.passes import ImageSource
from lobule.errors import ModelError
from lobule.findings import Finding
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.images import BrokenView, ExamView
from lobule.nets.four_view import TARGETS, ImageWise, ViewWise
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.stitch import State

SIDES = {"left": "L", "right": "R"}


class Features:
    """The trunk's features of every view and epoch, as far as there are any."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._of: dict[str, dict[int, NDArray[np.float32]]] = {}

    def take(self, view: str, epochs: Sequence[int], table: TableReader) -> None:
        """The rows of a table, one an epoch; those that failed are left out."""
        own = self._of.setdefault(view, {})
        own |= {epochs[row]: values for row, values in scored_rows(table, "features").items()}

    @property
    def views(self) -> tuple[str, ...]:
        """Views with at least one window."""
        return tuple(view for view in VIEWS if self._of.get(view))

    def of(self, views: Sequence[str]) -> dict[str, Tensor]:
        """(epochs, features) of each view, of those epochs that all of them have."""
        shared = [e for e in range(self.epochs) if all(e in self._of.get(view, {}) for view in views)]
        if not shared:
            raise ModelError(f"no window of {', '.join(views)} could be scored")
        return {
            view: torch.from_numpy(np.stack([self._of[view][epoch] for epoch in shared])) for view in views
        }


def scored_rows(table: TableReader, column: str) -> dict[int, NDArray[np.float32]]:
    """A column of those rows that have it: a part of failed rows alone has no column of the model's."""
    rows = {}
    for part in table.iterate():
        for field, state, values in zip(part["field"], part["state"], part.get(column, ()), strict=False):
            if state == State.SCORED:
                rows[int(field)] = values
    return rows


class _Stored(nn.Module):
    """Stands for the trunks where their features are already there."""

    def forward(self, view: str, x: Tensor) -> Tensor:
        return x


class Heads:
    """What comes after the trunks, in float64: it costs nothing, and no thread count shows in the scores."""

    def __init__(self, net: ViewWise | ImageWise) -> None:
        trunks = net.four_view_resnet
        try:
            net.four_view_resnet = _Stored()  # type: ignore[assignment]
            self.net = copy.deepcopy(net).double().eval().requires_grad_(False)
        finally:
            net.four_view_resnet = trunks

    def exam(self, features: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """(epochs, 4) probabilities of `TARGETS`."""
        assert isinstance(self.net, ViewWise)
        outputs = self.net({view: x.double() for view, x in features.items()})
        return np.asarray(ViewWise.exam_scores(outputs).numpy(), np.float64)

    def view(self, view: str, features: Tensor) -> NDArray[np.float64]:
        """(epochs, 2) probabilities of benign and malignant for one view."""
        assert isinstance(self.net, ImageWise)
        outputs = self.net.single(view, features.double())
        return np.asarray(outputs[..., 1].exp().numpy(), np.float64)


def exam_result(
    config: Config,
    heads: Heads,
    features: Features,
    images: Mapping[str, ImageSource],
    findings: Sequence[Finding],
) -> Result:
    """Scores of both breasts with their spread over the windows."""
    notes = []
    facts: dict[str, Any] = {
        "images": {name: image.facts() for name, image in images.items() if isinstance(image, ExamView)}
    }
    if config.variant == "view_wise":
        of_epochs = heads.exam(features.of(VIEWS))
        scores = dict(zip(TARGETS, of_epochs.mean(axis=0).tolist(), strict=True))
        facts["windows"] = len(of_epochs)
        facts["spread"] = {name: _spread(of_epochs[:, i]) for i, name in enumerate(TARGETS)}
    else:
        views = {view: heads.view(view, features.of([view])[view]) for view in features.views}
        scores = breast_scores({view: each.mean(axis=0).tolist() for view, each in views.items()})
        facts["windows"] = {view: len(each) for view, each in views.items()}
        facts["views"] = {
            view: {
                grade: {"score": float(each[:, i].mean()), **_spread(each[:, i])}
                for i, grade in enumerate(("benign", "malignant"))
            }
            for view, each in views.items()
        }
        notes.append(_views_note(views))
    notes += [f"{name}: {image.error}" for name, image in images.items() if isinstance(image, BrokenView)]
    ordered = tuple(sorted(findings, key=lambda finding: -finding.score))
    return Result(scores, ordered, tuple(notes), facts)


def breast_scores(views: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of a breast's views that are there, (benign, malignant) each, in the order of `TARGETS`."""
    scores = {}
    for index, grade in enumerate(("benign", "malignant")):
        for side, letter in SIDES.items():
            of_side = [scored[index] for view, scored in views.items() if view.startswith(letter)]
            if of_side:
                scores[f"{side}_{grade}"] = float(np.mean(of_side))
    return scores


def _views_note(views: Mapping[str, Any]) -> str:
    missing = [view for view in VIEWS if view not in views]
    gone = f", without {', '.join(missing)}" if missing else ""
    return f"Scored view by view by the image-wise model from {', '.join(views)}{gone}."


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    return {"std": float(values.std()), "least": float(values.min()), "greatest": float(values.max())}
