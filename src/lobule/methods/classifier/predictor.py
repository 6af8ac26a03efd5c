"""A tile classifier for the scanner: one cell a tile, one map layer a class."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lobule.bundles import Bundle
from lobule.cohort import Case
from lobule.errors import ConfigError, ModelError
from lobule.findings import components
from lobule.grid import MapGrid, share_in_cells
from lobule.methods.classifier.config import Config
from lobule.nets.inference import for_inference
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    ImageSource,
    OpenCase,
    Pass,
    ScanOptions,
    Store,
    map_pass,
)
from lobule.scanning.device import SLICE, activation_bytes, placed, slices_of
from lobule.slides.slide import open_slide
from lobule.stitch import State

log = logging.getLogger("lobule.scan")

BATCH = 32
HEADROOM = 2.0

WAITING = 12
"""Bytes of a pixel value of a tile, a lane: as read in up to four batches that wait, and twice as float32."""


class TilePredictor:
    """Any classifier of fixed-size tiles."""

    def __init__(self, config: Config, net: nn.Module) -> None:
        self.config, self.net = config, _fastest(net.eval())
        self.classes = config.classes
        self._placed: nn.Module | None = None
        self._engine = EngineSettings()

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        assert case.path is not None, "tiles are read from slides"
        return {"slide": open_slide(case.path, mpp=case.mpp or options.mpp)}

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        side = self.config.input
        if isinstance(self.net, torch.jit.ScriptModule):
            one = 64 * 4 * side * side  # a compiled model does not say: 64 full-size layers are ample
        else:
            one = int(HEADROOM * activation_bytes(self.net, side, side))
        if engine.device == "cpu":  # only a slice's activations exist at once
            room -= SLICE * one
            one = 0
        one += WAITING * 3 * self.config.tile**2
        return replace(engine, batch=max(1, min(BATCH, room // one)))

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._placed = placed(self.net, engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        # as many tiles as are computed at once: whole batches would take seconds to choose a form
        count = min(engine.batch, SLICE) if engine.device == "cpu" else engine.batch
        shape = (count, self.config.tile, self.config.tile, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return "tiles", Batch(torch.from_numpy(pixels).to(engine.device), {}, {})

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        lattice = case.images["slide"].lattice(mpp=self.config.mpp, upsample=case.options.upsample)
        stride = case.options.stride or self.config.tile
        grid = MapGrid(lattice, stride, self.config.tile)
        tissue = case.tissue()
        share = share_in_cells(grid, tissue.mask, tissue.l0_step)
        wanted = share >= self.config.tissue_share
        store = yield map_pass("tiles", grid, self.classes, wanted, ~wanted)
        assert isinstance(store, MapReader)
        return self._result(store, lattice.mpp is not None)

    def forward(self, name: str, batch: Batch) -> dict[str, torch.Tensor]:
        logits = torch.cat([self._logits(part) for part in slices_of(batch.pixels, self._engine)])
        if self.config.activation == "softmax":
            logits = torch.softmax(logits, dim=1)
        elif self.config.activation == "sigmoid":
            logits = torch.sigmoid(logits)
        return {"map": logits[:, :, None, None]}

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self._placed is not None
        dtype = torch.bfloat16 if self._engine.precision == "bfloat16" else torch.float32
        x = self.config.scaling.apply(pixels, torch.float32)  # resizing knows no bfloat16 on a CPU
        if x.shape[-1] != self.config.input:
            size = (self.config.input, self.config.input)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        logits: torch.Tensor = self._placed(x.to(dtype)).float()
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise ModelError(
                "the model's output does not fit its class names",
                expected=f"{len(self.classes)} numbers a tile",
                actual=f"an output of shape {tuple(logits.shape)}",
            )
        return logits

    def _result(self, store: MapReader, has_mpp: bool) -> Result:
        scores, states = store.read()
        slide_scores, findings = {}, []
        um, l0 = store.info.um_stride, store.info.l0_stride
        mpp = None
        if has_mpp and um is not None:
            from lobule.units import Mpp

            mpp = Mpp(um[0] / l0[0], um[1] / l0[1])
        for name in self.config.sought:
            layer = np.where(states == State.SCORED, scores[self.classes.index(name)], np.float32(0))
            slide_scores[name] = float(layer.max(initial=0.0))
            findings += components(layer, l0, mpp=mpp, threshold=0.5, label=name)
        return Result(slide_scores, tuple(sorted(findings, key=lambda finding: -finding.score)))


def _fastest(net: nn.Module) -> nn.Module:
    """The net with its norms folded, where it can be traced."""
    if isinstance(net, torch.jit.ScriptModule):
        return net
    try:
        return for_inference(net)
    except Exception as error:  # a model of somebody else's may do anything; it runs as it is
        log.debug("the net runs as it is: %s", error)
        return net


def build(config: Config) -> nn.Module:
    """The network of a configuration, with fresh weights."""
    source, _, name = config.architecture.partition(":")
    try:
        if source == "timm":
            from timm import create_model

            model: nn.Module = create_model(name, pretrained=False, num_classes=len(config.classes))
            return model
        from torchvision.models import get_model

        found: nn.Module = get_model(name, weights=None, num_classes=len(config.classes))
        return found
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"{source} has no model '{name}'", actual=str(error).splitlines()[0]) from error


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """A TorchScript file; torch calls them deprecated, and WSInfer's models are such files all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")
        return module


def load(bundle: Bundle, *, trust: bool = False) -> TilePredictor:
    """A classifier bundle as a predictor. A TorchScript file can run code: it needs `trust`."""
    config = Config.from_dict(bundle.config)
    if config.architecture == "torchscript":
        if not trust:
            raise ConfigError(
                "this bundle holds a TorchScript file, which can run code",
                subject=bundle.path,
                remedy="Pass --trust if you know where it came from",
            )
        return TilePredictor(config, load_torchscript(bundle.file("model.pt")))
    net = build(config)
    try:
        net.load_state_dict(bundle.weights())
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the net",
            subject=bundle.path,
            expected=config.architecture,
            actual=str(error),
        ) from error
    return TilePredictor(config, net)
