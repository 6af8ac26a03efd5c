"""Writes tokens of patches as dense grids, in the layout that slide2vec 7.1.4 stores and reads."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from lobule.cohort import Case
from lobule.errors import ConfigError
from lobule.features import FeatureFolder
from lobule.files import make_folder


def write_dense_grids(features: FeatureFolder, case: Case, out: str | Path) -> int:
    """Write the tokens of a case for readers of slide2vec; return the number of tiles.

    Each tile is a torch file `OUT/dense_embeddings/CASE/X_Y.pt` with a float16 tensor (width, rows, columns);
    X and Y are its corner in level-0 pixels. `X_Y.meta.json` in the same folder describes the grid. The files
    do not say how slide2vec would have read the slide. slide2vec therefore computes them again if it is run
    on this folder.

    Args:
        features: A folder of `lobule features --tokens`.
        case: The case.
        out: The folder of the output.

    Raises:
        ConfigError: The features were not extracted by Lobule.
        NotReadable: The folder has no tokens of this case.
    """
    tokens, manifest = features.find_tokens(case), features.manifest
    if manifest is None:
        raise ConfigError(
            "the folder has no manifest of Lobule, which states the size and the grid of its tiles",
            subject=features.path,
            remedy="Extract the tokens with `lobule features --tokens`",
        )
    folder = make_folder(Path(out) / "dense_embeddings" / quote(case.id, safe=" "))
    grid, side = tokens.grid, manifest.input_px
    described = {
        "artifact_type": "dense_embeddings",
        "sample_id": case.id,
        "annotation": None,
        "format": "pt",
        "dtype": "float16",
        "feature_dim": grid.width,
        "grid_shape": [grid.rows, grid.columns],
        "target_size": [side, side],
        "patch_size": [side // grid.rows, side // grid.columns],
        "encoded_size": [side, side],
        "pad": [0, 0],
        "feature_kind": "patch_features",
        "encoder": tokens.encoder,
        "requested_tile_size_px": manifest.tile_px,
        "requested_spacing_um": manifest.mpp,
    }
    corners = tokens.l0_coords()
    for rows, block in tokens.blocks():
        for (x, y), tile in zip(corners[rows].tolist(), block, strict=True):
            values = np.ascontiguousarray(np.moveaxis(tile, 2, 0)).astype(np.float16)
            metadata = folder / f"{x}_{y}.meta.json"
            metadata.unlink(missing_ok=True)  # for readers, a grid without metadata is not complete
            torch.save(torch.from_numpy(values), folder / f"{x}_{y}.pt")
            metadata.write_text(json.dumps({**described, "x": x, "y": y}), encoding="utf-8")
    return tokens.count
