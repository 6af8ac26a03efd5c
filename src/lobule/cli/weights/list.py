"""`lobule weights list`: list known pretrained and published weights."""

from __future__ import annotations

from pathlib import Path

from lobule.cli.base import CommandOutput, format_fields, lobule_command, table
from lobule.cli.machine import weight_caches
from lobule.cli.weights.catalog import CATALOG


@lobule_command("lobule weights list")
def command() -> CommandOutput:
    """List pretrained and published weights with the methods that use them, source, licence, hash and state.

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
    return CommandOutput({"weights": data, "caches": caches}, text)
