"""Descriptors of a whole cohort, computed by the scanner, cached by content and resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Cohort
from lobule.errors import LobuleError
from lobule.files import make_folder
from lobule.methods.rakhlin.config import Config, plain_name
from lobule.methods.rakhlin.describe import Describer, DescriptorPass, image_key
from lobule.methods.rakhlin.encoders import Encoder
from lobule.methods.rakhlin.predictor import Framed
from lobule.nets.digest import weights_digest
from lobule.results.folder import Results, open_results
from lobule.results.result import Result
from lobule.scanning.contract import OpenCase, ScanOptions, Steps
from lobule.scanning.open_case import slide_images
from lobule.scanning.progress import Progress
from lobule.scanning.scan import scan
from lobule.training.job import TrainingJob
from lobule.training.progress import FitProgress

FORMAT = 1
"""Version in the key of every cache; raised whenever the descriptors change."""
TABLE = "descriptors"


class FeaturePredictor:
    """One encoder for the scanner: a table of descriptors an image, one row an augmentation."""

    images = staticmethod(slide_images)

    def __init__(self, config: Config, index: int, encoder: Encoder, seed: int) -> None:
        self.config, self.seed = config, seed
        self.model = Describer(config, {index: encoder})

    def steps(self, case: OpenCase) -> Steps[Result]:
        framed = Framed.of(case, self.config, self.seed)
        count = self.config.augmentations
        fill_descriptors, normalised = framed.image_table(DescriptorPass(), TABLE, self.model.sets, count)
        yield from fill_descriptors
        return Result({}, metadata={"stains_normalised": normalised})


@dataclass(frozen=True)
class Described:
    """Descriptors of a cohort by one encoder, on disk."""

    results: Results
    ids: Mapping[str, str]
    """Case → its name in the cache."""

    def of(self, case: str, set_name: str) -> NDArray[np.float32]:
        """(augmentations, d)."""
        table = self.results.case_folder(self.ids[case]).tables[TABLE]
        descriptors: NDArray[np.float32] = table.read([set_name])[set_name].astype(np.float32, copy=False)
        return descriptors

    def normalised(self, case: str) -> bool:
        """Whether the stains of a case could be normalised."""
        result = self.results.case_folder(self.ids[case]).result
        return result is None or bool(result.get("stains_normalised", True))


def described(config: Config, index: int, encoder: Encoder, job: TrainingJob) -> Described:
    """Descriptors of every image of a training; only what the cache does not hold is computed.

    The cache is keyed by what makes descriptors (weights, images' content, augmentation, precision), so
    neither new names nor other parameters of the boosting compute anything again. The images that could not
    be described become failures of the training.
    """
    cohort, seed, machine = job.split.train, job.seed, job.scan_machine(job.workers)
    folder = make_folder(Path(config.features) if config.features else job.out / "features")
    ids, unreadable = _content_names(cohort)
    by_id = {ids[case.id]: replace(case, id=ids[case.id]) for case in cohort if case.id in ids}
    key_fields = what_makes(config, index, encoder, machine.precision, seed)
    key = hashlib.sha256(json.dumps(key_fields, sort_keys=True).encode()).hexdigest()
    folder_of_encoder = folder / f"{plain_name(config.encoders[index])}-{key[:16]}"
    predictor = FeaturePredictor(config, index, encoder, seed)
    bundle = {"method": "rakhlin features", "fingerprint": key, "makes": key_fields}
    report = scan(
        predictor, bundle, Cohort(tuple(by_id.values())), folder_of_encoder, ScanOptions(tissue=None),
        machine, retry_failed=True, progress=_ImageProgress(job.progress, config.encoders[index], len(by_id)),
    )  # fmt: skip
    partial = dict.fromkeys(report.partial, "some of its augmentations could not be computed")
    causes = {**partial, **report.failed}
    job.failures.update(unreadable | {case: causes[name] for case, name in ids.items() if name in causes})
    return Described(open_results(folder_of_encoder), ids)


def what_makes(config: Config, index: int, encoder: Encoder, precision: str, seed: int) -> dict[str, Any]:
    """Everything except the images that determines descriptors."""
    return {
        "format": FORMAT,
        "encoder": config.encoders[index],
        "weights": weights_digest(encoder.trunk),
        "input": encoder.plan.input,
        "keras": encoder.plan.keras,
        "sets": [[s.name, s.size, s.full] for s in config.sets if s.encoder == index],
        "precision": precision,
        "layout": "channels-last",
        "seed": seed,
        **{
            name: getattr(config, name)
            for name in ("mpp", "scale", "stains", "augmentations", "crops", "p_norm")
        },
        "stain_range": list(config.stain_range),
    }


def _content_names(cohort: Cohort) -> tuple[dict[str, str], dict[str, str]]:
    """Case → a name made of its content; and of those whose file cannot be read, why."""
    names, unreadable = {}, {}
    for case in cohort:
        try:
            key = f"{image_key(case)} {case.mpp}"
        except LobuleError as error:
            unreadable[case.id] = str(error)
            continue
        names[case.id] = hashlib.sha256(key.encode()).hexdigest()[:32]
    return names, unreadable


class _ImageProgress(Progress):
    """Progress of a scan, reported as progress of the training."""

    def __init__(self, training: FitProgress, encoder: str, images: int) -> None:
        super().__init__()

        class Finished(dict[str, str]):
            def show(self) -> None:
                training.stage = f"{encoder}: {len(self)} of {images} images described"

            def __setitem__(self, case: str, status: str) -> None:
                super().__setitem__(case, status)
                self.show()

        self.finished = Finished()
        self.finished.show()
