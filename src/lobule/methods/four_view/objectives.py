"""What each stage of training minimises, and how its nets are judged on exams set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lobule.measures.roc import auc
from lobule.methods.four_view.draws import ExamBatch
from lobule.methods.four_view.pool import UNKNOWN
from lobule.nets.birads import BiradsNet
from lobule.nets.four_view import TARGETS, Classifier, ImageWise, SideWise

MALIGNANT_ROWS = tuple(i for i, name in enumerate(TARGETS) if name.endswith("malignant"))
BENIGN_ROWS = tuple(i for i, name in enumerate(TARGETS) if name.endswith("benign"))


def breast_loss(log_probabilities: Tensor, labels: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Mean cross-entropy of (N, targets, 2) against labels (N, targets); unknown ones count nothing."""
    known = labels != UNKNOWN
    truth = labels.clamp(min=0)
    losses = -log_probabilities.float().gather(-1, truth[..., None])[..., 0]
    weights = torch.where(truth == 1, positive_weight, 1.0) * known
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def classifier_loss(net: Classifier, batch: ExamBatch, positive_weight: float) -> Tensor:
    """Every head (of an angle, a side, a view) learns the labels on its own; their losses are averaged."""
    return torch.stack(
        [breast_loss(said, labels, positive_weight) for said, labels in _told(net, batch)]
    ).mean()


def _told(net: Classifier, batch: ExamBatch) -> list[tuple[Tensor, Tensor]]:
    """Each head's log-probabilities and the labels they stand against."""
    outputs = net(batch.views)
    if isinstance(net, ImageWise):
        # a view's first two rows are benign and malignant of its own breast; the others are never read
        return [
            (said[:, :2], batch.labels[batch.rows[view]][:, _own(view)]) for view, said in outputs.items()
        ]
    if isinstance(net, SideWise):
        return [(said, batch.labels[:, _own(side)]) for side, said in outputs.items()]
    return [(said, batch.labels) for said in outputs.values()]


def _own(place: str) -> list[int]:
    """Rows of `TARGETS` of the breast of a view or a side."""
    side = 0 if place.upper().startswith("L") else 1
    return [BENIGN_ROWS[side], MALIGNANT_ROWS[side]]


def birads_loss(net: BiradsNet, batch: ExamBatch) -> Tensor:
    losses = []
    for view, logits in net(batch.views).items():
        grades = batch.grades[batch.rows[view], 0 if view.startswith("L") else 1]
        known = (grades != UNKNOWN).sum().clamp(min=1)
        total = F.cross_entropy(logits.float(), grades, ignore_index=UNKNOWN, reduction="sum")
        losses.append(total / known)
    return torch.stack(losses).mean()


# -- on exams set aside -------------------------------------------------------------------------------------


def exam_probabilities(net: Classifier, batch: ExamBatch) -> NDArray[np.float64]:
    """(N, 4) of `TARGETS`; NaN where a breast has no view."""
    outputs = net(batch.views)
    if not isinstance(net, ImageWise):
        return np.asarray(net.exam_scores(outputs).float().cpu().numpy(), np.float64)
    sums, counts = np.zeros((len(batch.labels), 4)), np.zeros((len(batch.labels), 4))
    for view, said in outputs.items():
        place = np.ix_(batch.rows[view].cpu().numpy(), np.array(_own(view)))
        sums[place] += said[:, :2, 1].exp().float().cpu().numpy()
        counts[place] += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def areas(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> dict[str, float]:
    """The area under the ROC curve over breasts, of what has both classes."""
    found = {}
    for name, rows in (("malignant", MALIGNANT_ROWS), ("benign", BENIGN_ROWS)):
        label, score = labels[:, rows].ravel(), scores[:, rows].ravel()
        kept = (label != UNKNOWN) & np.isfinite(score)
        area = auc(label[kept], score[kept])
        if area is not None:
            found[name] = area
    return found


def patch_areas(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[str, float]:
    """Of the patch network: malignant, and benign, against all else."""
    found = {}
    for label, name in enumerate(("malignant", "benign")):
        area = auc((labels == label).astype(int), scores[:, label])
        if area is not None:
            found[name] = area
    return found


def birads_area(grades: Sequence[NDArray[np.int64]], scores: Sequence[NDArray[np.float32]]) -> float:
    """One class against the rest, averaged over the classes that can be judged; 0.5 where none can."""
    truth, said = np.concatenate(grades), np.concatenate(scores)
    areas_of = [auc((truth == own).astype(int), said[:, own]) for own in range(said.shape[1])]
    known = [area for area in areas_of if area is not None]
    return float(np.mean(known)) if known else 0.5


def of_metrics(found: Mapping[str, float]) -> float:
    """The one number that decides which weights are kept: malignancy first, else what there is."""
    return found.get("malignant", found.get("benign", 0.5))
