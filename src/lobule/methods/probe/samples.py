"""Training tokens with their classes: computed from windows of slides, or read from stored tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.errors import ConfigError
from lobule.features import FeatureFolder, TokenFile
from lobule.methods.probe.config import Config
from lobule.methods.probe.heads import Labels, Rows
from lobule.methods.probe.model import ProbeModel
from lobule.training.job import TrainingJob
from lobule.training.patch_pools import PatchStreams
from lobule.training.patch_sampling import NORMAL, TUMOUR, Pool, SlidePositions
from lobule.training.sampling import SampleConfig, Samples

Tokens = tuple[Rows, Labels]

BATCH = 16
BLOCK_TILES = 64


def tokens_of_slides(
    config: Config, job: TrainingJob, model: ProbeModel, pool: Pool, round_: int, count: int
) -> Tokens:
    """Compute the tokens of windows centred on random positions of both classes.

    A window contributes tokens of the class at its centre, wherever the class of a token is certain.

    Args:
        config: The settings.
        job: The training.
        model: The model, on its device.
        pool: The positions on the slides.
        round_: Stream of random numbers; training and validation have different ones.
        count: Number of tokens.
    """
    windows = -(-count // config.tokens_per_window)
    streams = PatchStreams(job, SampleConfig(config.mpp, model.net.window), BATCH)
    job.progress.step, job.progress.steps = 0, -(-windows // BATCH)
    rows, labels = [], []
    with streams.draw(pool, round_, windows) as stream, torch.inference_mode():
        for samples in stream:
            tokens = model.tokens(torch.from_numpy(samples.pixels).to(job.device)).cpu().numpy()
            for number in range(len(samples)):
                rng = np.random.default_rng([job.seed, round_, samples.index + number])
                chosen = _choose(config, model, pool, samples, number, rng)
                rows.append(tokens[number].reshape(-1, tokens.shape[-1])[chosen])
                labels.append(np.full(len(chosen), samples.labels[number], np.int64))
            job.progress.step += 1
    return np.concatenate(rows).astype(np.float32), np.concatenate(labels)


def _choose(
    config: Config,
    model: ProbeModel,
    pool: Pool,
    samples: Samples,
    number: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """The tokens of a window that are used: of its class, in random order, up to the limit per window."""
    draw = samples.draws[number]
    positions = pool.slides[draw.slide]
    lattice = positions.slide.lattice(mpp=config.mpp)
    side, token_px = model.net.side, model.net.token_px
    offset = (np.arange(side) + 0.5) * token_px - model.net.window / 2
    x = draw.l0_x + offset * float(lattice.step_x)
    y = draw.l0_y + offset * float(lattice.step_y)
    points = np.stack([np.tile(x, side), np.repeat(y, side)], axis=1)
    of_class = np.flatnonzero(positions.certain_classes(points) == samples.labels[number])
    if not len(of_class):  # A small lesion: only the tokens at the centre of the window are certain.
        of_class = np.array([side // 2 * side + side // 2])
    return np.sort(rng.permutation(of_class)[: config.tokens_per_window])


# -- stored tokens ------------------------------------------------------------------------------------------


def tokens_of_folder(
    config: Config, folder: FeatureFolder, model: ProbeModel, pool: Pool, seed: int, count: int
) -> Tokens:
    """Read training tokens from a folder of `lobule features --tokens`, as many of each class and slide.

    Raises:
        ConfigError: The tokens were computed by another encoder, or on another grid.
    """
    _check_folder(config, folder, model)
    rows, labels = [], []
    for label in (NORMAL, TUMOUR):
        slides = pool.usable(label)
        for order, number in enumerate(slides):
            quota = (order + 1) * (count // 2) // len(slides) - order * (count // 2) // len(slides)
            positions = pool.slides[number]
            rng = np.random.default_rng([seed, number, label])
            chosen = _tokens_of_class(folder, model, positions, label, quota, rng)
            rows.append(chosen)
            labels.append(np.full(len(chosen), label, np.int64))
    return np.concatenate(rows).astype(np.float32), np.concatenate(labels)


def _check_folder(config: Config, folder: FeatureFolder, model: ProbeModel) -> None:
    manifest = folder.manifest
    if manifest is None or manifest.tokens == "none":
        raise ConfigError(
            "this folder contains no tokens",
            subject=folder.path,
            remedy="Extract them with `lobule features --tokens float16`",
        )
    window = model.net.window
    differences = {
        "encoder": (manifest.encoding.name, model.encoder.name),
        "hash of the encoder": (manifest.encoding.hash, model.encoder.hash_at(window)),
        "µm/px": (f"{manifest.mpp:g}", f"{config.mpp:g}"),
        "tile": (f"{manifest.tile_px} px", f"{window} px"),
        "input": (f"{manifest.input_px} px", f"{window} px"),
        "stains": (manifest.stains, "none"),
    }
    for name, (stored, expected) in differences.items():
        if stored != expected:
            raise ConfigError(
                f"the stored tokens have another {name} than the probe",
                subject=folder.path,
                expected=expected,
                actual=stored,
                remedy="Extract the tokens again with the settings of the probe, or change the settings",
            )


def _tokens_of_class(
    folder: FeatureFolder,
    model: ProbeModel,
    positions: SlidePositions,
    label: int,
    count: int,
    rng: np.random.Generator,
) -> Rows:
    """Random tokens of a class on one slide, fewer than `count` if the slide has fewer."""
    file = folder.find_tokens(positions.case)
    side = folder.find(positions.case).l0_side(positions.mpp)
    if side is None or (file.grid.rows, file.grid.columns) != (model.net.side, model.net.side):
        raise ConfigError(
            "the stored tokens are on another grid than the probe",
            subject=file.path,
            expected=f"{model.net.side} × {model.net.side} tokens per tile",
            actual=f"{file.grid.rows} × {file.grid.columns}",
            remedy="Extract the tokens again with the encoder of the probe",
        )
    of_class = np.flatnonzero(positions.certain_classes(_token_points(file, side)) == label)
    chosen = np.sort(rng.permutation(of_class)[:count])
    blocks = list(_rows_of(file, chosen))
    return np.concatenate(blocks) if blocks else np.empty((0, file.grid.width), np.float32)


def _token_points(file: TokenFile, tile_l0: float) -> NDArray[np.float64]:
    """The level-0 centres (tiles × tokens, 2) of all tokens of a file, tile by tile and row by row."""
    rows, columns = file.grid.rows, file.grid.columns
    x = (np.tile(np.arange(columns), rows) + 0.5) * tile_l0 / columns
    y = (np.repeat(np.arange(rows), columns) + 0.5) * tile_l0 / rows
    corners = file.l0_coords().astype(np.float64)
    return (corners[:, None] + np.stack([x, y], axis=1)).reshape(-1, 2)


def _rows_of(file: TokenFile, chosen: NDArray[np.int64]) -> Iterator[Rows]:
    """Read chosen tokens by their number, block by block."""
    per_tile = file.grid.count
    for tiles, values in file.blocks(BLOCK_TILES):
        first, last = tiles.start * per_tile, tiles.stop * per_tile
        inside = chosen[(chosen >= first) & (chosen < last)] - first
        if len(inside):
            yield values.reshape(-1, file.grid.width)[inside]
