"""Save and load a trained model: encoders as tensors, trees as LightGBM text, nothing pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from lobule.bundles import Bundle, TrainingRecord, trained_bundle, write_bundle
from lobule.errors import BundleError
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.encoders import Encoder, Plan, build, load_weights
from lobule.methods.rakhlin.forests import Calibrator, Forests, read_forest_file, text_name
from lobule.methods.rakhlin.predictor import RakhlinPredictor
from lobule.methods.rakhlin.trees import BoostedTrees


def save(
    path: str | Path,
    config: Config,
    encoders: Sequence[Encoder],
    texts: Mapping[str, str],
    calibrator: Calibrator | None = None,
    *,
    seed: int = 0,
    **record: Unpack[TrainingRecord],
) -> Bundle:
    """Write a bundle with the record of its training; `texts` are the models by `text_name`."""
    calibration = None if calibrator is None else calibrator.to_list()
    settings = {**config.to_dict(), "calibration_curves": calibration, "seed": seed}
    bundle = trained_bundle("rakhlin", settings, config.classes, config.mpp or None, **record)
    weights = {
        f"{index}.{name}": tensor
        for index, encoder in enumerate(encoders)
        for name, tensor in encoder.trunk.state_dict().items()
    }
    return write_bundle(path, bundle, weights, texts)


def load(bundle: Bundle, *, trust: bool = False) -> RakhlinPredictor:
    """Load a bundle as a predictor. It contains no code, so `trust` is not needed."""
    stored_config = dict(bundle.config)
    try:
        curves, seed = stored_config.pop("calibration_curves"), int(stored_config.pop("seed"))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError("model.json lacks a setting", subject=bundle.path, actual=repr(error)) from error
    config = Config.from_dict(stored_config)
    weights = bundle.weights()
    encoders = []
    for index in range(len(config.encoders)):
        encoder = build(Plan.of(config, index))
        prefix = f"{index}."
        encoder_weights = {
            name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)
        }
        load_weights(encoder, encoder_weights, bundle.path)
        encoders.append(encoder)
    widths = [sum(encoder.widths()) for encoder in encoders]
    forests = {
        set_.name: [
            _forest(bundle, text_name(set_.name, model, fold), len(config.classes), widths[set_.encoder])
            for model, fold in config.boosting.models()
        ]
        for set_ in config.sets
    }
    calibrator = None if curves is None else Calibrator.from_list(curves)
    return RakhlinPredictor(config, encoders, Forests(forests), calibrator, seed)


def _forest(bundle: Bundle, name: str, classes: int, features: int) -> BoostedTrees:
    forest = read_forest_file(bundle.file(name))
    if (forest.classes, forest.features) != (classes, features):
        raise BundleError(
            "the model does not fit the bundle",
            subject=bundle.path and bundle.path / name,
            expected=f"{classes} classes and {features} features",
            actual=f"{forest.classes} classes and {forest.features} features",
            remedy="Copy the bundle again from its source",
        )
    return forest
