"""An ensemble of bag models: it scores bags; tile scores are oriented, calibrated and averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lobule.errors import BundleError, LobuleError, ModelError, UsageError
from lobule.methods.chowder.bags import Bag
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.models import build
from lobule.methods.chowder.orientation import (
    Calibration,
    Orientation,
    check_drawable,
    mean_value,
    orient,
    slide_evidence,
)
from lobule.nets.mil import Standardised

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BagScores:
    """The scores of one bag by every member."""

    logits: Floats
    """Shape (members,); NaN for a bag without tiles."""
    evidence: NDArray[np.float32]
    """Tile scores of shape (members, tiles), not yet oriented."""

    @property
    def probability(self) -> float:
        """The mean over the members."""
        return float((1 / (1 + np.exp(-self.logits))).mean())


@dataclass(frozen=True, eq=False)
class Localisation:
    """How tile scores are converted to a map."""

    orientations: tuple[Orientation, ...]
    calibrations: tuple[Calibration, ...]
    cut: float
    """A tile with a value above this is part of a finding."""
    auc: float | None
    """AUC of the slides' highest tile scores, on the slides named by `judged_on`."""
    judged_on: str
    refused: str | None = None
    """The reason why no map is drawn; None if maps are drawn."""

    def values(self, evidence: NDArray[np.float32]) -> Floats:
        """The share of normal tiles that do not score higher than each tile, averaged over members."""
        return mean_value(list(evidence), self.orientations, self.calibrations)

    def describe(self) -> dict[str, Any]:
        return {
            "signs": [orientation.sign for orientation in self.orientations],
            "auc_top": [round(orientation.auc_top, 4) for orientation in self.orientations],
            "auc_bottom": [round(orientation.auc_bottom, 4) for orientation in self.orientations],
            "cut": self.cut,
            "auc": self.auc,
            "judged_on": self.judged_on,
            "refused": self.refused,
        }


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The trained members of one config."""

    config: Config
    members: tuple[Standardised, ...]

    @property
    def dim(self) -> int:
        return len(self.members[0].mean)

    @property
    def in_pieces(self) -> bool:
        return self.members[0].model.in_pieces

    def outputs(self, blocks: Iterable[Tensor]) -> list[Tensor]:
        """The outputs of each member for every tile, shape (tiles, k), computed block by block."""
        outputs_of_members: list[list[Tensor]] = [[] for _ in self.members]
        with torch.inference_mode():
            for block in blocks:
                for member, outputs in zip(self.members, outputs_of_members, strict=True):
                    outputs.append(member.of_tiles(block.to(member.mean)))
            width = self.dim if not self.in_pieces else 1
            return [torch.cat(chunks) if chunks else torch.zeros(0, width) for chunks in outputs_of_members]

    def score_outputs(self, outputs: Sequence[Tensor]) -> BagScores:
        logits, evidence = [], []
        with torch.inference_mode():
            for member, tiles in zip(self.members, outputs, strict=True):
                result = member.model.of_outputs(tiles.to(member.mean.device))
                logits.append(float(result["logit"][0]))
                evidence.append(result["evidence"][0].float().cpu().numpy())
        return BagScores(np.array(logits), np.stack(evidence).astype(np.float32))

    def score_bag(self, blocks: Iterable[Tensor]) -> BagScores:
        """Score a bag of any size with every member."""
        if self.in_pieces:
            return self.score_outputs(self.outputs(blocks))
        features = torch.cat([block.float() for block in blocks])
        single_ensembles = (Ensemble(self.config, (member,)) for member in self.members)
        scores_of_members = [
            ensemble.score_outputs(ensemble.outputs([features])) for ensemble in single_ensembles
        ]
        return BagScores(
            np.concatenate([scores.logits for scores in scores_of_members]),
            np.concatenate([scores.evidence for scores in scores_of_members]),
        )


def localise(
    config: Config,
    train_bags: Sequence[tuple[Bag, BagScores]],
    check_bags: Sequence[tuple[Bag, BagScores]],
    judged_on: str,
) -> Localisation:
    """Orient and calibrate each member on the training bags; decide on `check_bags` if maps may be drawn."""
    r = config.setting("r")
    labels = [bag.label for bag, _ in train_bags]
    orientations, calibrations = [], []
    for member in range(len(train_bags[0][1].evidence)):
        tile_scores = [scores.evidence[member] for _, scores in train_bags]
        orientation = orient(tile_scores, labels, r)
        normal = [
            orientation.evidence(slide_scores)
            for slide_scores, label in zip(tile_scores, labels, strict=True)
            if not label
        ]
        orientations.append(orientation)
        calibrations.append(Calibration.of(normal))
    localisation = Localisation(tuple(orientations), tuple(calibrations), 1.0, None, judged_on)
    normal_values = np.concatenate(
        [localisation.values(scores.evidence) for bag, scores in train_bags if not bag.label]
    )
    cut = float(np.quantile(normal_values, config.threshold, method="higher"))
    # A map stores float32. If many normal tiles share the highest value, the cut must stay below the highest
    # value that a tile can reach.
    top = np.float32(calibrations[0].tiles / (calibrations[0].tiles + 1.0))
    cut = float(min(np.float32(cut), np.nextafter(top, np.float32(0))))
    auc, refused = None, None
    try:
        evidence = [slide_evidence(localisation.values(scores.evidence), r) for _, scores in check_bags]
        auc = check_drawable(evidence, [bag.label for bag, _ in check_bags])
    except (ModelError, UsageError) as error:
        refused = str(error)
    return Localisation(tuple(orientations), tuple(calibrations), cut, auc, judged_on, refused)


# -- on disk ------------------------------------------------------------------------------------------------


def to_tensors(ensemble: Ensemble, localisation: Localisation | None) -> dict[str, Tensor]:
    """All tensors of a bundle, with the names that `members_of` and `localisation_of` read."""
    tensors = {
        f"member-{number}/{name}": value
        for number, member in enumerate(ensemble.members)
        for name, value in member.state_dict().items()
    }
    for number, calibration in enumerate(() if localisation is None else localisation.calibrations):
        tensors[f"calibration-{number}/evidence"] = torch.from_numpy(calibration.normal_evidence)
        tensors[f"calibration-{number}/not_above"] = torch.from_numpy(calibration.not_above)
        tensors[f"calibration-{number}/tiles"] = torch.tensor(calibration.tiles)
    return tensors


def members_of(config: Config, dim: int, tensors: Mapping[str, Tensor]) -> Ensemble:
    members = []
    count = len({name.partition("/")[0] for name in tensors if name.startswith("member-")})
    for number in range(count):
        member = Standardised(build(config, dim), dim)
        try:
            member.load_state_dict(_with_prefix(tensors, f"member-{number}/"))
        except RuntimeError as error:
            raise BundleError(
                "the weights do not fit the bag model of the config", actual=str(error)
            ) from error
        members.append(member.eval().requires_grad_(False))
    if not members:
        raise BundleError("the bundle contains no member", expected="weights of at least one bag model")
    return Ensemble(config, tuple(members))


def localisation_of(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Localisation:
    try:
        orientations = tuple(
            Orientation(int(sign), float(top), float(bottom))
            for sign, top, bottom in zip(
                description["signs"], description["auc_top"], description["auc_bottom"], strict=True
            )
        )
        calibrations = []
        for number in range(len(orientations)):
            arrays = _with_prefix(tensors, f"calibration-{number}/")
            calibrations.append(
                Calibration(arrays["evidence"].numpy(), arrays["not_above"].numpy(), int(arrays["tiles"]))
            )
        return Localisation(
            orientations,
            tuple(calibrations),
            description["cut"],
            description["auc"],
            description["judged_on"],
            description["refused"],
        )
    except LobuleError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError("the localisation in the bundle is damaged", actual=repr(error)) from error


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
