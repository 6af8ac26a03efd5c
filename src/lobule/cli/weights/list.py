"""`lobule weights list`: list known pretrained and published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lobule.cli.base import CommandOutput, format_fields, lobule_command, table
from lobule.cli.machine import weight_caches
from lobule.cli.weights.catalog import CATALOG
from lobule.encoders import ENCODERS, NOT_SUPPORTED


@lobule_command("lobule weights list")
def command() -> CommandOutput:
    """List pretrained and published weights and tile encoders, with source, licence, hash and state.

    torchvision and timm download backbones at first use. Published models are not downloaded: get the file
    yourself under its licence, then check it with `lobule weights inspect`.
    """
    caches = weight_caches()
    cache_folders = {cache["of"]: Path(cache["folder"]) for cache in caches}
    data = [
        {
            "name": weights.name,
            "methods": list(weights.methods),
            "file": weights.file,
            "source": weights.source,
            "licence": weights.licence,
            "sha256_prefix": weights.sha256,
            "git_blob_prefix": weights.git_blob,
            "fetched": weights.fetched,
            "here": weights.fetched and (cache_folders["torchvision"] / weights.file).is_file(),
        }
        for weights in CATALOG
    ]
    rows = [
        (
            weights.name,
            ", ".join(weights.methods),
            weights.source,
            f"sha256 {weights.sha256}…" if weights.sha256 else f"git {weights.git_blob}…",
            "here" if item["here"] else "at first use" if weights.fetched else "download it yourself",
        )
        for weights, item in zip(CATALOG, data, strict=True)
    ]
    licences = dict.fromkeys((weights.source.partition(",")[0], weights.licence) for weights in CATALOG)
    text = table(("weights", "for", "source", "hash", "state"), rows)
    text += "\n\n" + format_fields([(f"licence of {source}", licence) for source, licence in licences])
    text += "\n" + format_fields([(f"{cache['of']} cache", cache["folder"]) for cache in caches])
    text += "\n\n" + table(("encoder", "features", "tiles", "licence", "state"), encoder_rows())
    return CommandOutput({"weights": data, "encoders": encoder_data(), "caches": caches}, text)


def encoder_data() -> list[dict[str, Any]]:
    """The encoders of `lobule features --encoder`, for JSON."""
    rows = [
        {
            "name": entry.name,
            "features": entry.width,
            "tile_px": entry.default_tile_px,
            "mpp": list(entry.mpp),
            "file": entry.published.address,
            "sha256": entry.published.sha256,
            "licence": entry.licence.name,
            "commercial": entry.licence.commercial,
            "redistribution": entry.licence.redistribution,
            "gated": entry.licence.gated,
            "not_confirmed": list(entry.not_confirmed),
        }
        for entry in ENCODERS.values()
    ]
    return rows + [{"name": name, "not_supported": reason} for name, reason in NOT_SUPPORTED.items()]


def encoder_rows() -> list[tuple[str, str, str, str, str]]:
    """The encoders of `lobule features --encoder`, for people."""
    rows = []
    for entry in ENCODERS.values():
        mpp = " or ".join(f"{value:g}" for value in sorted(entry.mpp))
        tiles = f"{entry.default_tile_px} px" + (f" at {mpp} µm/px" if mpp else "")
        state = "apply to the authors" if entry.licence.gated else "at first use"
        if entry.published.package is not None:
            state = "extra 'starter'"
        if entry.not_confirmed:
            state = "not confirmed: refused without --unverified"
        rows.append((entry.name, str(entry.width), tiles, entry.licence.name, state))
    return rows + [(name, "", "", "", f"not supported: {reason}") for name, reason in NOT_SUPPORTED.items()]
