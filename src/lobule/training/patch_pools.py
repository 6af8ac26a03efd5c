"""The patches of a training on outlined slides: positions, streams of batches, and the validation AUC."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.augment import NO_AUGMENTATION
from lobule.cohort import Case, Cohort
from lobule.color import Normalisation
from lobule.errors import ConfigError, LobuleError, UsageError
from lobule.scanning.loader import cause_of
from lobule.tissue import TissueConfig
from lobule.training.job import TrainingJob
from lobule.training.patch_sampling import NORMAL, TUMOUR, Pool, SlidePositions, find_positions
from lobule.training.sampling import SampleConfig, Samples, SampleStream

VALIDATION = 1_000_000
"""Random stream (round) of the validation patches, so that every evaluation uses the same patches."""


def gather(
    cohort: Cohort,
    tissue: TissueConfig | None = None,
    *,
    workers: int = 1,
    need: tuple[int, ...] = (0, 1),
    stains: Normalisation = "none",
) -> Pool:
    """Find the patch positions on every slide of a cohort.

    Args:
        cohort: The slides.
        tissue: Settings of the tissue detection; None uses the whole slide.
        workers: Number of threads.
        need: Classes that at least one slide must have.
        stains: How the stains of the slides are normalised.

    Returns:
        The positions, with notes about slides that were left out.

    Raises:
        ConfigError: No slide has positions of a needed class.
    """

    def positions_of(case: Case) -> tuple[SlidePositions | None, list[str]]:
        try:
            return find_positions(case, tissue, stains)
        except UsageError:
            raise
        except (LobuleError, OSError) as error:
            return None, [f"left out: {cause_of(error)}"]

    with ThreadPoolExecutor(workers, thread_name_prefix="positions") as threads:
        outcomes = list(threads.map(positions_of, cohort))
    notes = [
        f"{case.id}: {note}"
        for case, (_, case_notes) in zip(cohort, outcomes, strict=True)
        for note in case_notes
    ]
    pool = Pool(tuple(positions for positions, _ in outcomes if positions is not None), notes=tuple(notes))
    for label, name in ((NORMAL, "normal tissue"), (TUMOUR, "tumour")):
        if label in need and not pool.usable(label):
            reasons = "; ".join(notes[:5]) + ("; …" if len(notes) > 5 else "")
            raise ConfigError(
                f"no slide has {name} to draw from",
                subject=cohort.path,
                expected="annotated tumour slides, and normal or exhaustively annotated ones",
                actual=reasons or f"{len(cohort)} slides",
            )
    return pool


def train_pool(
    job: TrainingJob, need: tuple[int, ...] = (NORMAL, TUMOUR), stains: Normalisation = "none"
) -> Pool:
    """Find the patch positions on the training slides; `need` lists the classes that must be there."""
    job.begin_stage("finding tissue")
    pool = gather(job.split.train, job.tissue, workers=job.workers, need=need, stains=stains)
    job.note(*pool.notes)
    return pool


def validation_pool(
    job: TrainingJob, need: tuple[int, ...] = (NORMAL, TUMOUR), stains: Normalisation = "none"
) -> Pool | None:
    """Find the patch positions on the validation slides; None without slides of the classes in `need`."""
    if not job.split.val:
        return None
    pool = gather(job.split.val, job.tissue, workers=job.workers, need=(), stains=stains)
    job.note(*pool.notes)
    if not pool.has_both_classes:
        job.note("The validation split lacks a class; there is no validation and the last weights are used.")
    return pool if all(pool.usable(label) for label in need) else None


def cases_of(pool: Pool | None) -> list[Case]:
    """Return the cases of the slides in a pool; none without a pool."""
    return [] if pool is None else [positions.case for positions in pool.slides]


@dataclass(frozen=True, eq=False)
class PatchStreams:
    """The streams of patches of a training."""

    job: TrainingJob
    config: SampleConfig
    batch: int
    """Patches per batch."""
    val_patches: int = 0
    """Patches for each evaluation."""

    def draw(self, pool: Pool, round_: int = 0, patches: int | None = None) -> SampleStream:
        """Return the stream of batches of a round; None for `patches` is endless.

        Validation patches are not augmented, and are not divided among the processes of the training.
        """
        job, validates = self.job, round_ == VALIDATION
        return SampleStream(
            pool,
            replace(self.config, augment=NO_AUGMENTATION) if validates else self.config,
            self.batch,
            seed=job.seed,
            round_=round_,
            batches=None if patches is None else -(-patches // self.batch),
            workers=job.workers,
            processes=job.machine.processes,
            ahead=max(4, 2 * job.workers),
            share=(0, 1) if validates else (job.ranks.rank, job.ranks.count),
        )

    def validation(self, pool: Pool) -> SampleStream:
        """Return the stream of the validation patches, which is the same in every evaluation."""
        return self.draw(pool, VALIDATION, max(1, self.val_patches))

    def validate(
        self, pool: Pool | None, score: Callable[[Samples], Tensor]
    ) -> Callable[[nn.Module], float] | None:
        """Return the function for `TrainingJob.fit` that computes the area under the ROC curve of patches.

        It is None without validation patches of both classes.
        """
        if pool is None or not pool.has_both_classes:
            return None
        return lambda _: patch_auc(self.validation(pool), score)


def score_patches(
    stream: Iterable[Samples], score: Callable[[Samples], Tensor]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the classes and the scores of all patches of a stream."""
    labels, scores = [], []
    for samples in stream:
        scores.append(score(samples).cpu().numpy())
        labels.append(samples.labels)
    return np.concatenate(labels), np.concatenate(scores).astype(np.float64)


def patch_auc(stream: SampleStream, score: Callable[[Samples], Tensor]) -> float:
    """Return the area under the ROC curve of the patches of a stream, and close the stream."""
    from sklearn.metrics import roc_auc_score

    with stream:
        return float(roc_auc_score(*score_patches(stream, score)))
