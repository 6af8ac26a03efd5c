"""Training of a bag model on stored features: cross-validation where asked, an ensemble, its localisation.

Everything that a training leaves behind lies in `out`: the bundle, which comes last, and `training/` with a
folder a member and a file a fold, from which an interrupted training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lobule.bundles import Bundle, patient_hash, write_bundle
from lobule.cohort import Cohort
from lobule.cohort.case import Kind
from lobule.errors import ConfigError, ResultsError
from lobule.features import FeatureFolder, open_features
from lobule.features.frame import to_facts
from lobule.files import read_json, write_json
from lobule.methods.chowder.agreement import auc_spread, ensemble_agreement, training_notes
from lobule.methods.chowder.bags import Bag, gather, refuse_mixed, refuse_one_class
from lobule.methods.chowder.checks import auc_of, counterfactual, localisation_metrics
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.crossvalidate import cross_validate
from lobule.methods.chowder.ensemble import Ensemble, Localisation, Told, localise, members_of, to_tensors
from lobule.methods.chowder.fit import Fitted, Moments, fit, moments_of
from lobule.methods.chowder.splits import hold_out
from lobule.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lobule.training.fitting import FitProgress, TrainMachine
from lobule.training.job import begun_training, training_split

log = logging.getLogger("lobule.train")

KINDS: tuple[Kind, ...] = ("slide", "region")
ENCODER = "encoder.safetensors"
OUT_OF_FOLD = "out_of_fold.csv"
LEARNED_FROM = "features.json"
"""Of a training: what every bag's features were, so that one that goes on finds the same."""


def train(
    config: Config,
    cohort: Cohort,
    out: str | Path,
    *,
    val: str | None = "val",
    seed: int = 0,
    resume: bool = False,
    fresh: bool = False,
    machine: TrainMachine | None = None,
    progress: FitProgress | None = None,
) -> Bundle:
    """Train on the stored features of a cohort with one label a case, and write the bundle.

    `val` names the split that members stop by and that the map is judged on; without one in the cohort a
    fifth of the patients is held out, and with None nobody is.
    """
    config = config.resolved()
    if not config.features:
        raise ConfigError(
            "a bag model is trained on stored features",
            remedy="Make them with `lobule features COHORT --out DIR`, then pass --set features=DIR",
        )
    folder = open_features(config.features)
    progress = progress or FitProgress()
    progress.stage = "reading features"
    sides = _sides(cohort, val, seed, folder, config)
    also = {"seed": seed, "kind": _kind(folder, sides.train)}
    parts = training_split(cohort, None, seed, KINDS)
    with begun_training(out, config, parts, also=also, resume=resume, fresh=fresh) as place:
        _refuse_other_features(place, sides, out)
        training = _Training(
            config,
            sides,
            folder,
            place,
            seed,
            (machine or TrainMachine()).resolved(),
            progress,
        )
        return training.run(Path(out))


@dataclass(frozen=True)
class Sides:
    """Who trains, who validates, who left the training for it, and what there is to say."""

    train: list[Bag]
    val: list[Bag]
    held_out: bool
    failures: dict[str, str]
    notes: tuple[str, ...]


def _sides(cohort: Cohort, val: str | None, seed: int, folder: FeatureFolder, config: Config) -> Sides:
    own_split = bool(val and cohort.split(val))
    parts = training_split(cohort, val if own_split else None, seed, KINDS)
    found = gather(parts.train, folder, config.positive)
    refuse_one_class(found.bags, "training")
    if val is None:
        return Sides(list(found.bags), [], False, found.failures, (*found.notes, *parts.notes))
    if not own_split:
        train_bags, val_bags, note = hold_out(found.bags, seed)
        return Sides(train_bags, val_bags, bool(val_bags), found.failures, (*found.notes, note))
    other = gather(parts.val, folder, config.positive)
    refuse_mixed([*found.bags, *other.bags])
    notes, lost = (*found.notes, *other.notes), found.failures | other.failures
    if len({bag.label for bag in other.bags}) < 2:
        note = "the validation split lacks a label: nothing is validated and the last weights are kept"
        return Sides(list(found.bags), [], False, lost, (*notes, note))
    return Sides(list(found.bags), list(other.bags), False, lost, notes)


def _refuse_other_features(place: Path, sides: Sides, out: str | Path) -> None:
    """Refuse to go on where features have changed since: members on disk were fitted to what was there."""
    wanted = {bag.case.id: bag.identity() for bag in (*sides.train, *sides.val)}
    kept = place / LEARNED_FROM
    if not kept.exists():
        write_json(kept, wanted)
        return
    before = read_json(kept)
    changed = [name for name in {**wanted, **before} if wanted.get(name) != before.get(name)]
    if changed:
        raise ResultsError(
            "features have changed since this training began",
            subject=out,
            actual=", ".join(changed[:5]) + (" …" if len(changed) > 5 else ""),
            remedy="Start over with --fresh",
        )


def _kind(folder: FeatureFolder, bags: Sequence[Bag]) -> dict[str, Any]:
    """What the features are of, as the bundle and a resumed training must find them again."""
    file = bags[0].file
    if folder.manifest is None:
        return {"encoding": {"name": file.encoder, "hash": None, "dim": file.dim}, "tiling": None}
    manifest = folder.manifest
    names = ("mpp", "tile_px", "input_px", "tissue_share")
    return {
        "encoding": to_facts(manifest.encoding),
        "tiling": {name: getattr(manifest, name) for name in names},
    }


class _Training:
    """One training: its bags, its members and what is found out about them."""

    def __init__(
        self,
        config: Config,
        sides: Sides,
        folder: FeatureFolder,
        place: Path,
        seed: int,
        machine: TrainMachine,
        progress: FitProgress,
    ) -> None:
        self.config, self.sides, self.folder, self.move_to_device = config, sides, folder, place
        self.seed, self.machine, self.progress = seed, machine, progress
        self.dim = sides.train[0].file.dim
        self.notes = list(sides.notes)

    def run(self, out: Path) -> Bundle:
        for note in self.notes:
            log.info(note)
        metrics: dict[str, Any] = {}
        texts: dict[str, str] = {}
        config = self.config
        if config.folds:
            everyone = self.sides.train + (self.sides.val if self.sides.held_out else [])
            checked = cross_validate(
                config, everyone, self.move_to_device, self.seed, self._fitted, self._stage
            )
            metrics |= checked.metrics
            texts[OUT_OF_FOLD] = checked.table
            if checked.chosen is not None:
                config = replace(config, rate=checked.chosen[0], decay=checked.chosen[1])
        ensemble, members = self._members(config)
        self._stage("reading whole bags")
        told_train = self._told(ensemble, self.sides.train)
        told_val = self._told(ensemble, self.sides.val)
        judged, on = (
            (told_val, "validation cases") if told_val else (told_train, "the training cases themselves")
        )
        localisation = localise(config, told_train, judged, on)
        if localisation.refused:
            self.notes.append(f"no map will be drawn: {localisation.refused}")
        metrics |= self._metrics(ensemble, localisation, told_train, told_val, members)
        return self._save(out, ensemble, localisation, metrics, texts)

    def _members(self, config: Config) -> tuple[Ensemble, list[dict[str, Any]]]:
        """The members, each from disk where it was fitted before."""
        moments: Moments | None = None
        tensors: dict[str, Tensor] = {}
        facts: list[dict[str, Any]] = []
        for number in range(config.members):
            place = self.move_to_device / f"member-{number:02d}"
            found = read_checkpoint(place)
            if found is None:
                if config.standardise and moments is None:
                    moments = moments_of(self.sides.train)
                self._stage(f"member {number + 1} of {config.members}")
                seed = member_seed(self.seed, number)
                fitted = self._fitted(config, self.sides.train, self.sides.val, seed, moments)
                place.mkdir(parents=True, exist_ok=True)
                found = Checkpoint({"fitted": facts_of(fitted)}, fitted.model.state_dict())
                write_checkpoint(place, found, "weights")
            facts.append(dict(found.contents["fitted"]))
            log.info(_member_line(number, config.members, facts[-1]))
            tensors |= {f"member-{number}/{name}": value for name, value in found.tensors.items()}
        return members_of(config, self.dim, tensors), facts

    def _fitted(
        self,
        config: Config,
        train_bags: Sequence[Bag],
        val_bags: Sequence[Bag],
        seed: int,
        moments: Moments | None = None,
    ) -> Fitted:
        if config.standardise and moments is None:
            moments = moments_of(train_bags)
        self.progress.steps = config.own("epochs")
        return fit(
            config,
            train_bags,
            val_bags,
            seed,
            device=self.machine.device,
            max_ram=self.machine.max_ram,
            moments=moments,
            tell=self._tell,
        )

    def _tell(self, epoch: int, loss: float) -> None:
        self.progress.loss = loss
        self.progress.step = epoch

    def _stage(self, stage: str) -> None:
        self.progress.stage = stage

    def _told(self, ensemble: Ensemble, bags: Sequence[Bag]) -> list[tuple[Bag, Told]]:
        return [(bag, ensemble.tell(bag.blocks())) for bag in bags]

    def _metrics(
        self,
        ensemble: Ensemble,
        localisation: Localisation,
        told_train: Sequence[tuple[Bag, Told]],
        told_val: Sequence[tuple[Bag, Told]],
        members: list[dict[str, Any]],
    ) -> dict[str, Any]:
        judged = told_val or told_train
        where = localisation_metrics(judged, localisation)
        agreement = ensemble_agreement([scores.logits for _, scores in told_train])
        spread = auc_spread([one["val_auc"] for one in members])
        warnings = training_notes(agreement, spread, [bag.label for bag, _ in told_val], len(members))
        for warning in warnings:
            log.warning(warning)
        self.notes += warnings
        return {
            "val_auc": auc_of(told_val),
            "train_auc": auc_of(told_train),
            "evidence_auc": localisation.auc,
            "tile_auc": None if where is None else where["tile_auc"],
            "localisation": where,
            "counterfactual": counterfactual(ensemble, localisation, judged, self.seed),
            "judged_on": localisation.judged_on,
            "members": members,
            "member_val_auc": spread,
            "agreement": agreement,
        }

    def _save(
        self,
        out: Path,
        ensemble: Ensemble,
        localisation: Localisation,
        metrics: Mapping[str, Any],
        texts: Mapping[str, str],
    ) -> Bundle:
        kind = _kind(self.folder, self.sides.train)
        weights = self.folder.encoder_weights
        provenance = {
            "seed": self.seed,
            "features": self.config.features,
            "train_cases": [bag.case.id for bag in self.sides.train],
            "val_cases": [bag.case.id for bag in self.sides.val],
            "notes": self.notes,
            "lost": self.sides.failures,
        }
        seen = [*self.sides.train, *(self.sides.val if self.sides.held_out else [])]
        facts = {**replace(ensemble.config, features="").to_dict(), **kind}
        bundle = Bundle(
            "chowder",
            {**facts, "localisation": localisation.facts()},
            ensemble.config.classes,
            None if kind["tiling"] is None else kind["tiling"]["mpp"],
            metrics,
            provenance,
            tuple(sorted({patient_hash(bag.case.patient) for bag in seen})),
        )
        copies = {ENCODER: weights} if weights is not None else None
        return write_bundle(out, bundle, to_tensors(ensemble, localisation), texts, copies)


def member_seed(seed: int, number: int) -> int:
    """A seed of its own for each member."""
    return int(np.random.default_rng([seed, number, 0x3E3]).integers(2**31))


def _member_line(number: int, members: int, outcome: Mapping[str, Any]) -> str:
    line = f"member {number + 1} of {members}: {outcome['epochs']} epochs, loss {outcome['loss']:.4f}"
    auc = outcome["val_auc"]
    return line if auc is None else f"{line}, validation AUC {auc:.4f} at epoch {outcome['best_epoch']}"


def facts_of(fitted: Fitted) -> dict[str, Any]:
    return {
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "val_auc": fitted.val_auc,
        "loss": fitted.losses[-1],
    }
