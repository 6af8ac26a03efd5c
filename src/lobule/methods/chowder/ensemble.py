"""An ensemble of bag models: what its members say of a bag, oriented, calibrated and averaged."""

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
from lobule.methods.chowder.config import Config, build
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
class Told:
    """What every member says of one bag."""

    logits: Floats
    """(members,); NaN for a bag without a tile."""
    evidence: NDArray[np.float32]
    """(members, tiles), not yet oriented."""

    @property
    def probability(self) -> float:
        """The mean over the members."""
        return float((1 / (1 + np.exp(-self.logits))).mean())


@dataclass(frozen=True, eq=False)
class Localisation:
    """How evidence becomes a map."""

    orientations: tuple[Orientation, ...]
    calibrations: tuple[Calibration, ...]
    cut: float
    """The value above which a tile is a finding."""
    auc: float | None
    """Of the slides' highest evidence, on the slides named by `judged_on`."""
    judged_on: str
    refused: str | None = None
    """Why no map is drawn."""

    def values(self, evidence: NDArray[np.float32]) -> Floats:
        """The value of each tile: the share of normal tiles that are not above it, averaged over members."""
        return mean_value(list(evidence), self.orientations, self.calibrations)

    def facts(self) -> dict[str, Any]:
        return {
            "signs": [one.sign for one in self.orientations],
            "auc_top": [round(one.auc_top, 4) for one in self.orientations],
            "auc_bottom": [round(one.auc_bottom, 4) for one in self.orientations],
            "cut": self.cut,
            "auc": self.auc,
            "judged_on": self.judged_on,
            "refused": self.refused,
        }


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The fitted members of one config."""

    config: Config
    members: tuple[Standardised, ...]

    @property
    def dim(self) -> int:
        return len(self.members[0].mean)

    @property
    def in_pieces(self) -> bool:
        return self.members[0].model.in_pieces

    def outputs(self, blocks: Iterable[Tensor]) -> list[Tensor]:
        """What each member's bag needs of every tile, (tiles, k), the tiles read in pieces."""
        found: list[list[Tensor]] = [[] for _ in self.members]
        with torch.inference_mode():
            for block in blocks:
                for member, outputs in zip(self.members, found, strict=True):
                    outputs.append(member.of_tiles(block.to(member.mean)))
            width = self.dim if not self.in_pieces else 1
            return [torch.cat(parts) if parts else torch.zeros(0, width) for parts in found]

    def of_outputs(self, outputs: Sequence[Tensor]) -> Told:
        logits, evidence = [], []
        with torch.inference_mode():
            for member, tiles in zip(self.members, outputs, strict=True):
                found = member.model.of_outputs(tiles.to(member.mean.device))
                logits.append(float(found["logit"][0]))
                evidence.append(found["evidence"][0].float().cpu().numpy())
        return Told(np.array(logits), np.stack(evidence).astype(np.float32))

    def tell(self, blocks: Iterable[Tensor]) -> Told:
        """What the members say of a bag, whatever its size."""
        if self.in_pieces:
            return self.of_outputs(self.outputs(blocks))
        whole = torch.cat([block.float() for block in blocks])
        one_by_one = (Ensemble(self.config, (member,)) for member in self.members)
        told = [one.of_outputs(one.outputs([whole])) for one in one_by_one]
        return Told(np.concatenate([t.logits for t in told]), np.concatenate([t.evidence for t in told]))


def localise(
    config: Config, train: Sequence[tuple[Bag, Told]], judged: Sequence[tuple[Bag, Told]], judged_on: str
) -> Localisation:
    """Orient and calibrate each member on the training bags; judge on others whether a map may be drawn."""
    r = config.own("r")
    labels = [bag.label for bag, _ in train]
    orientations, calibrations = [], []
    for member in range(len(train[0][1].evidence)):
        scores = [told.evidence[member] for _, told in train]
        orientation = orient(scores, labels, r)
        normal = [orientation.evidence(s) for s, label in zip(scores, labels, strict=True) if not label]
        orientations.append(orientation)
        calibrations.append(Calibration.of(normal))
    made = Localisation(tuple(orientations), tuple(calibrations), 1.0, None, judged_on)
    normal_values = np.concatenate([made.values(told.evidence) for bag, told in train if not bag.label])
    cut = float(np.quantile(normal_values, config.threshold, method="higher"))
    # a map holds float32, and where many normal tiles share the highest value a tile must be able to be above
    top = np.float32(calibrations[0].tiles / (calibrations[0].tiles + 1.0))
    cut = float(min(np.float32(cut), np.nextafter(top, np.float32(0))))
    auc, refused = None, None
    try:
        evidence = [slide_evidence(made.values(told.evidence), r) for _, told in judged]
        auc = check_drawable(evidence, [bag.label for bag, _ in judged])
    except (ModelError, UsageError) as error:
        refused = str(error)
    return Localisation(tuple(orientations), tuple(calibrations), cut, auc, judged_on, refused)


# -- on disk ------------------------------------------------------------------------------------------------


def to_tensors(ensemble: Ensemble, localisation: Localisation | None) -> dict[str, Tensor]:
    """Everything that is numbers, by names that `of_tensors` takes back."""
    found = {
        f"member-{number}/{name}": value
        for number, member in enumerate(ensemble.members)
        for name, value in member.state_dict().items()
    }
    for number, one in enumerate(() if localisation is None else localisation.calibrations):
        found[f"calibration-{number}/evidence"] = torch.from_numpy(one.normal_evidence)
        found[f"calibration-{number}/not_above"] = torch.from_numpy(one.not_above)
        found[f"calibration-{number}/tiles"] = torch.tensor(one.tiles)
    return found


def members_of(config: Config, dim: int, tensors: Mapping[str, Tensor]) -> Ensemble:
    members = []
    count = len({name.partition("/")[0] for name in tensors if name.startswith("member-")})
    for number in range(count):
        member = Standardised(build(config, dim), dim)
        try:
            member.load_state_dict(_under(tensors, f"member-{number}/"))
        except RuntimeError as error:
            raise BundleError("the weights do not fit the bag model", actual=str(error)) from error
        members.append(member.eval().requires_grad_(False))
    if not members:
        raise BundleError("the bundle holds no member", expected="weights of at least one bag model")
    return Ensemble(config, tuple(members))


def localisation_of(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Localisation:
    try:
        orientations = tuple(
            Orientation(int(sign), float(top), float(bottom))
            for sign, top, bottom in zip(facts["signs"], facts["auc_top"], facts["auc_bottom"], strict=True)
        )
        calibrations = []
        for number in range(len(orientations)):
            one = _under(tensors, f"calibration-{number}/")
            calibrations.append(
                Calibration(one["evidence"].numpy(), one["not_above"].numpy(), int(one["tiles"]))
            )
        return Localisation(
            orientations,
            tuple(calibrations),
            facts["cut"],
            facts["auc"],
            facts["judged_on"],
            facts["refused"],
        )
    except LobuleError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError("the localisation in the bundle is damaged", actual=repr(error)) from error


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
