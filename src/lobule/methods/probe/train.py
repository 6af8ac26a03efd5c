"""The training of a probe: collect tokens under outlines, fit the head, write the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from lobule.bundles import Bundle, plain_weights, trained_bundle, write_bundle, write_tensors
from lobule.cohort import Cohort
from lobule.encoders.load import open_encoder, restore_encoder
from lobule.encoders.table import licences_of
from lobule.errors import ConfigError
from lobule.features import FeatureFolder, open_features
from lobule.methods.probe.config import Config
from lobule.methods.probe.heads import Labels, Rows, fit_head
from lobule.methods.probe.model import ProbeModel
from lobule.methods.probe.predictor import ENCODER
from lobule.methods.probe.samples import tokens_of_folder, tokens_of_slides
from lobule.nets.encoders import Encoder
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.training.job import TrainingJob, TrainOptions, training_job
from lobule.training.patch_pools import VALIDATION, cases_of, train_pool, validation_pool
from lobule.training.patch_sampling import Pool


def train(config: Config, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]) -> Bundle:
    """Fit a head to the tokens under the outlines of a cohort.

    An interrupted training starts from the beginning, because it takes only seconds to minutes.

    Args:
        config: The settings.
        cohort: Slides with tumour outlines, and normal slides.
        out: The folder of the bundle.
        **options: See `TrainOptions`.

    Returns:
        The bundle as written.

    Raises:
        ConfigError: The encoder has no tokens, or the stored tokens do not fit it.
    """
    folder = open_features(config.features) if config.features else None
    encoder = _encoder(config, folder)
    model = ProbeModel(config, encoder, nn.Identity())
    with training_job(config, cohort, out, **options) as job:
        engine = EngineSettings(job.machine.precision, device=job.machine.device)
        model.move_to_device(engine, ScanOptions())
        pool, val_pool = train_pool(job), validation_pool(job)
        job.begin_stage("computing tokens")
        rows, labels = _tokens(config, job, folder, model, pool, 0, config.tokens)
        job.begin_stage("fitting the head")
        head = fit_head(config, rows, labels, job.seed)
        metrics: dict[str, Any] = {"tokens": len(labels), "tumour_tokens": int(labels.sum())}
        if val_pool is not None:
            val = _tokens(config, job, folder, model, val_pool, VALIDATION, max(2, config.tokens // 4))
            metrics["val_auc"] = _token_auc(head, *val)
        # No choice depends on the validation tokens, so their patients may be evaluated.
        record = job.record(cases_of(pool), (), metrics, **licences_of(encoder.name))
        return _write(job, config, encoder, model, head, record)


def _encoder(config: Config, folder: FeatureFolder | None) -> Encoder:
    """The encoder of the settings; with stored tokens, the one that is stored beside them."""
    if folder is None or folder.encoder_weights is None or folder.manifest is None:
        return open_encoder(config.encoder, config.weights)
    name = folder.manifest.encoding.name
    if name != config.encoder:
        raise ConfigError(
            "the stored tokens have another encoder than the probe",
            subject=folder.path,
            expected=config.encoder,
            actual=name,
            remedy=f"Pass --set encoder={name}, or extract the tokens again",
        )
    return restore_encoder(name, plain_weights(folder.encoder_weights))


def _tokens(
    config: Config,
    job: TrainingJob,
    folder: FeatureFolder | None,
    model: ProbeModel,
    pool: Pool,
    round_: int,
    count: int,
) -> tuple[Rows, Labels]:
    if folder is None:
        return tokens_of_slides(config, job, model, pool, round_, count)
    return tokens_of_folder(config, folder, model, pool, job.seed, count)


def _token_auc(head: nn.Module, rows: Rows, labels: Labels) -> float | None:
    """The area under the ROC curve of tokens; None if they have only one class."""
    from sklearn.metrics import roc_auc_score

    if labels.min() == labels.max():
        return None
    with torch.inference_mode():
        scores = torch.cat([head(chunk) for chunk in torch.from_numpy(rows).split(4096)])
    return float(roc_auc_score(labels, scores.numpy()))


def _write(
    job: TrainingJob,
    config: Config,
    encoder: Encoder,
    model: ProbeModel,
    head: nn.Module,
    record: Mapping[str, Any],
) -> Bundle:
    stored = job.folder / ENCODER
    write_tensors(stored, encoder.weights)
    encoding = {"name": encoder.name, "hash": encoder.hash_at(model.net.window), "dim": model.net.width}
    content = {**config.to_dict(), "features": "", "encoding": encoding}
    bundle = trained_bundle("probe", content, config.classes, config.mpp, **record)
    return write_bundle(job.out, bundle, head.state_dict(), copies={ENCODER: stored})
