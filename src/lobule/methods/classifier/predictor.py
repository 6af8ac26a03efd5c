"""The predictor of tile classifiers: each tile is one cell of the map, each class one layer."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lobule.bundles import Bundle
from lobule.errors import ConfigError, ModelError
from lobule.grid import MapGrid, share_in_cells
from lobule.methods.classifier.config import Config
from lobule.nets.fused import free_originals, restore_originals
from lobule.nets.inference import for_inference
from lobule.nets.resnet import torchvision_model
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, OpenCase, ScanOptions, Steps, fill_map
from lobule.scanning.device import SLICE, copy_to_device, dtype_of, random_batch, slices_of, working_bytes
from lobule.scanning.map_findings import map_findings
from lobule.scanning.open_case import slide_images

log = logging.getLogger("lobule.scan")

BATCH = 32
"""Tiles of a batch on a GPU. On a CPU a batch has `SLICE` tiles: with larger ones, one core waits longer for
the other at the end of a case."""

QUEUED_BYTES = 12
"""Bytes per pixel value: one in each of up to four waiting batches, and eight for two copies as float32."""


@dataclass(frozen=True)
class TileScores:
    """Key of the pass that classifies tiles."""


class TileModel:
    """A classifier of fixed-size tiles."""

    def __init__(self, config: Config, net: nn.Module) -> None:
        self.config, self._net = config, _optimised(net.eval())
        self._device_net: nn.Module | None = None
        self._engine = EngineSettings()

    @property
    def net(self) -> nn.Module:
        """The network on the host. If its weights were freed for a scan, they are restored."""
        if self._device_net is not None:
            restore_originals(self._device_net)
        return self._net

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        side = self.config.input
        if isinstance(self.net, torch.jit.ScriptModule):
            bytes_per_tile = (
                64 * 4 * side * side
            )  # unknown for a compiled model; 64 full-size layers are a generous estimate
        else:
            bytes_per_tile = working_bytes(self.net, side, side)
        if engine.device == "cpu":  # the CPU computes one slice of a batch at a time
            max_bytes -= SLICE * bytes_per_tile
            bytes_per_tile = 0
        bytes_per_tile += QUEUED_BYTES * 3 * self.config.tile**2
        most = SLICE if engine.device == "cpu" else BATCH
        return replace(engine, batch=max(1, min(most, max_bytes // bytes_per_tile)))

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._device_net = copy_to_device(self.net, engine)

    def free_originals(self) -> bool:
        return self._device_net is not None and free_originals(self._device_net, self._net)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[TileScores, Batch]:
        # A few tiles are enough to choose the fastest form of the model; a larger batch would take seconds.
        count = min(engine.batch, SLICE) if engine.device == "cpu" else engine.batch
        return TileScores(), random_batch(engine, self.config.tile, self.config.tile, count)

    def forward(self, key: TileScores, batch: Batch) -> dict[str, torch.Tensor]:
        logits = torch.cat([self._logits(pixels) for pixels in slices_of(batch.pixels, self._engine)])
        if self.config.activation == "softmax":
            logits = torch.softmax(logits, dim=1)
        elif self.config.activation == "sigmoid":
            logits = torch.sigmoid(logits)
        return {"map": logits[:, :, None, None]}

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self._device_net is not None
        x = self.config.scaling.apply(pixels, torch.float32)  # a CPU cannot resize bfloat16
        if x.shape[-1] != self.config.input:
            size = (self.config.input, self.config.input)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        logits: torch.Tensor = self._device_net(x.to(dtype_of(self._engine))).float()
        if logits.ndim != 2 or logits.shape[1] != len(self.config.classes):
            raise ModelError(
                "the output of the model does not fit the class names",
                expected=f"{len(self.config.classes)} numbers per tile",
                actual=f"an output of shape {tuple(logits.shape)}",
            )
        return logits


class TilePredictor:
    """Scans slides with a classifier of fixed-size tiles."""

    images = staticmethod(slide_images)

    def __init__(self, config: Config, net: nn.Module) -> None:
        self.config, self.model = config, TileModel(config, net)

    def steps(self, case: OpenCase) -> Steps[Result]:
        config = self.config
        lattice = case.images["slide"].lattice(mpp=config.mpp, upsample=case.options.upsample)
        grid = MapGrid(lattice, case.options.stride or config.tile, config.tile)
        tissue = case.tissue()
        has_tissue = share_in_cells(grid, tissue.mask, tissue.l0_step) >= config.tissue_share
        reader = yield from fill_map(TileScores(), "tiles", grid, config.classes, has_tissue)
        return Result(*map_findings(reader, config.target_classes, threshold=0.5))


def _optimised(net: nn.Module) -> nn.Module:
    """The net with folded normalisation layers if it can be traced; otherwise the net unchanged."""
    if isinstance(net, torch.jit.ScriptModule):
        return net
    try:
        return for_inference(net)
    except Exception as error:  # foreign models can raise anything; use them unchanged
        log.debug("The net is used without optimisation: %s", error)
        return net


def build(config: Config) -> nn.Module:
    """Build the network of a configuration with newly initialised weights."""
    source, _, name = config.architecture.partition(":")
    try:
        if source == "timm":
            from timm import create_model

            timm_model: nn.Module = create_model(name, pretrained=False, num_classes=len(config.classes))
            return timm_model
        return torchvision_model(name, len(config.classes))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"{source} has no model '{name}'", actual=str(error).splitlines()[0]) from error


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file without the deprecation warning, because WSInfer distributes such files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")
        return module


def load(bundle: Bundle, *, trust: bool = False) -> TilePredictor:
    """Load a classifier bundle as a predictor. A TorchScript file can run code and requires `trust`."""
    config = Config.from_dict(bundle.config)
    if config.architecture == "torchscript":
        if not trust:
            raise ConfigError(
                "this bundle contains a TorchScript file, which can run code",
                subject=bundle.path,
                remedy="Pass --trust if you know where it came from",
            )
        return TilePredictor(config, load_torchscript(bundle.file("model.pt")))
    net = build(config)
    bundle.fill(net, config.architecture)
    return TilePredictor(config, net)
