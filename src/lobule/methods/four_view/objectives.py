"""The loss of each training stage, and its measures on the validation exams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lobule.measures.roc import auc
from lobule.methods.four_view.samples import ExamBatch
from lobule.methods.four_view.training_exams import UNKNOWN
from lobule.nets.birads import BiradsNet
from lobule.nets.four_view import TARGETS, Classifier, ImageWise, SideWise
from lobule.nets.published import PATCH_CLASSES

MALIGNANT_ROWS = tuple(i for i, name in enumerate(TARGETS) if name.endswith("malignant"))
BENIGN_ROWS = tuple(i for i, name in enumerate(TARGETS) if name.endswith("benign"))


def breast_loss(log_probabilities: Tensor, labels: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Return the mean cross-entropy of (N, targets, 2) and labels (N, targets), ignoring unknown labels."""
    has_label = labels != UNKNOWN
    targets = labels.clamp(min=0)
    losses = -log_probabilities.float().gather(-1, targets[..., None])[..., 0]
    weights = torch.where(targets == 1, positive_weight, 1.0) * has_label
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def classifier_loss(net: Classifier, batch: ExamBatch, positive_weight: float) -> Tensor:
    """Average the losses of all heads.

    Each head (of an angle, a side or a view) predicts the labels alone.
    """
    return torch.stack(
        [breast_loss(outputs, labels, positive_weight) for outputs, labels in _outputs_and_labels(net, batch)]
    ).mean()


def _outputs_and_labels(net: Classifier, batch: ExamBatch) -> list[tuple[Tensor, Tensor]]:
    """Return the log-probabilities of each head and the labels that they are compared with."""
    outputs = net(batch.views)
    if isinstance(net, ImageWise):
        # The first two rows of a view are benign and malignant of its breast. The others are not used.
        return [
            (log_probabilities[:, :2], batch.labels[batch.rows[view]][:, _rows_of_breast(view)])
            for view, log_probabilities in outputs.items()
        ]
    if isinstance(net, SideWise):
        return [
            (log_probabilities, batch.labels[:, _rows_of_breast(side)])
            for side, log_probabilities in outputs.items()
        ]
    return [(log_probabilities, batch.labels) for log_probabilities in outputs.values()]


def _rows_of_breast(view_or_side: str) -> list[int]:
    """Return the rows of `TARGETS` for the breast of a view or a side."""
    side = 0 if view_or_side.upper().startswith("L") else 1
    return [BENIGN_ROWS[side], MALIGNANT_ROWS[side]]


def birads_loss(net: BiradsNet, batch: ExamBatch) -> Tensor:
    losses = []
    for view, logits in net(batch.views).items():
        grades = batch.grades_of(view)
        graded = (grades != UNKNOWN).sum().clamp(min=1)
        total = F.cross_entropy(logits.float(), grades, ignore_index=UNKNOWN, reduction="sum")
        losses.append(total / graded)
    return torch.stack(losses).mean()


# -- on the validation exams --------------------------------------------------------------------------------


def exam_probabilities(net: Classifier, batch: ExamBatch) -> NDArray[np.float64]:
    """Return probabilities (N, 4) in the order of `TARGETS`; NaN where a breast has no view."""
    outputs = net(batch.views)
    if not isinstance(net, ImageWise):
        return np.asarray(net.exam_scores(outputs).float().cpu().numpy(), np.float64)
    sums, counts = np.zeros((len(batch.labels), 4)), np.zeros((len(batch.labels), 4))
    for view, log_probabilities in outputs.items():
        entries = np.ix_(batch.rows[view].cpu().numpy(), np.array(_rows_of_breast(view)))
        sums[entries] += log_probabilities[:, :2, 1].exp().float().cpu().numpy()
        counts[entries] += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def areas(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> dict[str, float]:
    """Return the area under the ROC curve over breasts, for each target that has both classes."""
    areas_by_target = {}
    for name, rows in (("malignant", MALIGNANT_ROWS), ("benign", BENIGN_ROWS)):
        label, score = labels[:, rows].ravel(), scores[:, rows].ravel()
        usable = (label != UNKNOWN) & np.isfinite(score)
        areas_by_target[name] = auc(label[usable], score[usable])
    return {name: area for name, area in areas_by_target.items() if area is not None}


def mean_of_four(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float | None:
    """Return the mean area of the targets of each breast that have both classes; None if none has."""
    areas_by_target = []
    for target in range(labels.shape[1]):
        usable = (labels[:, target] != UNKNOWN) & np.isfinite(scores[:, target])
        areas_by_target.append(auc(labels[usable, target], scores[usable, target]))
    defined = [area for area in areas_by_target if area is not None]
    return float(np.mean(defined)) if defined else None


def one_against_rest(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> list[float | None]:
    """Return the area of each class against all others; None where it is not defined."""
    return [auc((labels == label).astype(int), scores[:, label]) for label in range(scores.shape[1])]


def patch_areas(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[str, float]:
    """Return the areas of the patch network's malignant and benign class, each against all other classes."""
    areas_by_class = one_against_rest(labels, scores)[:2]
    return {name: a for name, a in zip(PATCH_CLASSES, areas_by_class, strict=False) if a is not None}


def breast_areas(net: Classifier, batches: Iterable[ExamBatch]) -> dict[str, float]:
    """Return the areas of the classifier on some exams."""
    return areas(*labels_and_scores(net, batches))


def labels_and_scores(
    net: Classifier, batches: Iterable[ExamBatch]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the labels and the scores (exams, 4) of some exams."""
    pairs = [(batch.labels.cpu().numpy(), exam_probabilities(net, batch)) for batch in batches]
    labels, scores = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return labels, scores


def birads_area(net: BiradsNet, batches: Iterable[ExamBatch]) -> float:
    """Average the areas of each class against the rest, over the classes where it is defined; 0.5 if none."""
    grades, scores = [], []
    for batch in batches:
        for view, logits in net(batch.views).items():
            graded = batch.grades_of(view) != UNKNOWN
            grades.append(batch.grades_of(view)[graded].cpu().numpy())
            scores.append(torch.softmax(logits.float(), dim=1)[graded].cpu().numpy())
    areas_by_grade = one_against_rest(np.concatenate(grades), np.concatenate(scores))
    defined = [area for area in areas_by_grade if area is not None]
    return float(np.mean(defined)) if defined else 0.5


def selection_metric(areas_by_target: Mapping[str, float]) -> float:
    """Return the number that selects the best weights: the area of malignancy, else of benign, else 0.5."""
    return areas_by_target.get("malignant", areas_by_target.get("benign", 0.5))
