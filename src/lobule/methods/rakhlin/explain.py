"""What the predictions rest on: SHAP values of the trees, summed by encoder, layer and crop size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from lobule.methods.rakhlin.config import Config, DescriptorSet
from lobule.methods.rakhlin.trees import BoostedTrees


@dataclass(frozen=True, eq=False)
class Explained:
    """Sums of |SHAP value| of each component of a descriptor, and over how many predictions."""

    sums: NDArray[np.float64]
    rows: int


def explain(forest: BoostedTrees, rows: NDArray[np.float32], labels: NDArray[np.intp]) -> Explained:
    """The contributions, in log-odds, to the class that each row truly has."""
    width = rows.shape[1]
    booster = lightgbm.Booster(model_str=forest.to_text())
    contributions = np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1))
    of_truth = contributions.reshape(len(rows), -1, width + 1)[np.arange(len(rows)), labels, :width]
    return Explained(np.abs(of_truth).sum(axis=0), len(rows))


class Attributions:
    """What was explained of every set."""

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.rows: dict[str, int] = {}

    def add(self, set_name: str, explained: Explained) -> None:
        if explained.rows:
            self.sums[set_name] = self.sums.get(set_name, 0) + explained.sums
            self.rows[set_name] = self.rows.get(set_name, 0) + explained.rows

    def summary(self, config: Config, widths: Mapping[int, Sequence[tuple[str, int]]]) -> dict[str, Any]:
        """Mean |SHAP| a prediction of every set and layer, and the shares of encoders and crop sizes.

        `widths` says of each encoder which layers its descriptor is joined of, and how wide each is.
        """
        mean = {s.name: self.sums[s.name] / self.rows[s.name] for s in config.sets if s.name in self.sums}
        sets = [set_ for set_ in config.sets if set_.name in mean]
        total = sum(float(values.sum()) for values in mean.values()) or 1.0

        def share(chosen: list[DescriptorSet]) -> float:
            return sum(float(mean[set_.name].sum()) for set_ in chosen) / total

        layers: dict[str, dict[str, float]] = {}
        for set_ in sets:
            ends = np.cumsum([width for _, width in widths[set_.encoder]])[:-1]
            layer_means = np.split(mean[set_.name], ends)
            names = [name for name, _ in widths[set_.encoder]]
            layers[set_.name] = {n: float(p.sum()) for n, p in zip(names, layer_means, strict=True)}
        sizes = sorted({set_.size for set_ in sets})
        return {
            "what": "mean |SHAP value| of the true class, in log-odds, on images left out",
            "predictions": sum(self.rows.values()),
            "sets": {name: float(values.sum()) for name, values in mean.items()},
            "layers": layers,
            "share_of_encoder": {
                name: share([set_ for set_ in sets if set_.encoder == n])
                for n, name in enumerate(config.encoders)
            },
            "share_of_crop_size": {str(size): share([s for s in sets if s.size == size]) for size in sizes},
        }
