"""Small probes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lobule.bundles import Bundle, read_bundle, trained_bundle, write_bundle, write_tensors
from lobule.encoders.load import open_encoder
from lobule.methods.probe import Config, ProbeModel
from lobule.methods.probe.heads import LinearHead
from lobule.methods.probe.predictor import ENCODER
from lobule.scanning.contract import EngineSettings, ScanOptions
from tests.scanning.support import pixels_of

SMALL: dict[str, Any] = {
    "encoder": "lobule:tiny", "weights": "random", "window": 96, "strides": (8,), "smooth": 1.0
}  # fmt: skip


def small_probe(**settings: Any) -> ProbeModel:
    """A probe whose scores vary between 0 and 1."""
    config = Config(**{**SMALL, **settings})
    model = ProbeModel(config, open_encoder(config.encoder, config.weights), torch.nn.Identity())
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(model.net.width, generator=generator)
    model.move_to_device(EngineSettings(), ScanOptions())
    pixels = torch.from_numpy(pixels_of(96, 96, 9))[None]
    with torch.inference_mode():
        logits = model.tokens(pixels).flatten(0, 2) @ weight
    spread = float(logits.std())
    return ProbeModel(config, model.encoder, LinearHead(weight / spread, -logits.mean() / spread))


def probe_bundle(folder: Path, **settings: Any) -> Bundle:
    """The bundle of `small_probe`."""
    model = small_probe(**settings)
    stored = folder / "stored.safetensors"
    write_tensors(stored, model.encoder.weights)
    encoding = {"name": model.encoder.name, "hash": model.encoder.hash_at(model.net.window), "dim": 1}
    content = {**model.config.to_dict(), "encoding": encoding}
    bundle = trained_bundle("probe", content, model.config.classes, model.config.mpp)
    write_bundle(folder / "bundle", bundle, model.head.state_dict(), copies={ENCODER: stored})
    return read_bundle(folder / "bundle")
