"""Extract features of tiles with one encoder or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lobule.api.models import GIB, JpegDecoder, Layout, Precision, Runtime, _tissue_option
from lobule.api.runners import Runner, require_ray_options
from lobule.settings import checked_options

if TYPE_CHECKING:
    from lobule.cohort import Cohort
    from lobule.nets.encoders import Encoder
    from lobule.scanning.progress import Progress
    from lobule.scanning.scan import ScanReport
    from lobule.tissue import TissueConfig

DEFAULT_TILE_PX = 224


@checked_options
def extract_features(
    cases: Cohort | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    encoder: str | Sequence[str] = "resnet50",
    backbone: str | None = None,
    weights: str | Path | Sequence[str | Path] = "pretrained",
    unverified: bool = False,
    mpp: float = 0.5,
    tile: int | None = None,
    input_px: int | None = None,
    tissue: TissueConfig | bool = True,
    tissue_share: float = 0.1,
    stains: Literal["none", "macenko"] = "none",
    slide_mpp: float | None = None,
    upsample: bool = False,
    layout: Literal["trident", "clam"] = "trident",
    dtype: Literal["float16", "float32"] | None = None,
    tokens: Literal["none", "float16", "int8"] = "none",
    keep_encoder: bool = True,
    fresh: bool = False,
    retry_failed: bool = False,
    device: str = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    memory_layout: Layout = "auto",
    jpeg_decoder: JpegDecoder | None = None,
    max_ram: int = 2 * GIB,
    readers: int | None = None,
    batch: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    workers: int | None = None,
    worker_cpus: int | None = None,
    progress: Progress | None = None,
) -> ScanReport:
    """Compute features of every tissue tile and write one HDF5 file per case.

    An interrupted run resumes when it is called again with the same arguments.

    Args:
        cases: A cohort, the path of a manifest, or the paths of slides.
        out: Folder for the feature files, or its URL in an object store, such as s3://bucket/features.
        encoder: Name of an encoder, such as "uni2-h", "resnet50", "timm:NAME" or "lobule:NAME". Several
            encoders share one pass over the slides, and each writes to a subfolder of `out`.
        backbone: The earlier name of `encoder`.
        weights: "pretrained", "random", or a file that contains only weights. With several encoders, one for
            all of them or one for each.
        unverified: Accept an encoder with properties that no source confirms, and a weights file with another
            hash than the published one.
        mpp: Resolution of the tiles in µm/px.
        tile: Width of a tile in pixels. By default the width that the encoder is made for, or 224.
        input_px: Tiles are resized to this width. By default the width that the encoder requires, if it
            requires one, and otherwise that of the tile.
        tissue: Use only tiles with tissue. False uses whole slides; a `TissueConfig` changes the detection.
        tissue_share: Smallest share of a tile that must be tissue.
        stains: "macenko" maps the stains of every slide to those of a reference before tiles are encoded.
        slide_mpp: The µm/px of slides that do not state it.
        upsample: Allow a resolution finer than that of the slide.
        layout: Layout of the files, "trident" or "clam".
        dtype: Type of the stored features; float16 by default, and float32 for the layout "clam".
        tokens: Also store the tokens of the patches of every tile: "float16", or "int8" with a factor for
            each token, which takes half the space.
        keep_encoder: Store the weights with the features, so that a bundle trained on them can scan slides.
        fresh: Delete existing features in `out` first.
        retry_failed: Try failed cases and tiles again.
        device: "auto", "cpu", "mps", "cuda:0", or several cards such as "cuda:0,cuda:2".
        runtime: Library that computes the encoder on a CPU, as for `scan`.
        precision: "auto" measures the fastest choice once per machine and encoder, and stores it.
        memory_layout: Memory layout of the encoder; "auto" works as for `precision`.
        jpeg_decoder: What decodes JPEG tiles: "cpu" (the default), or "nvimagecodec" on a CUDA card (extra
            `nvimagecodec`), which rounds differently.
        max_ram: Memory in bytes to use besides the encoder.
        readers: Reading threads; by default one per core.
        batch: Number of tiles per batch.
        runner: "local" works in this process; "ray" with workers on Ray (extra `ray`), as for `scan`.
        address: Address of a Ray cluster; by default, Ray is started on this machine.
        workers: Number of workers on Ray.
        worker_cpus: CPU cores of a worker on Ray.
        progress: Receives the progress.

    Returns:
        A report with the number of cases by status, and the reason for each failed case.

    Raises:
        ConfigError: The encoder does not exist or is refused, or an option is invalid.
        ModelError: A weights file belongs to another encoder.
        ResultsError: `out` contains other features or is in use.
    """
    from lobule.cohort import as_cohort
    from lobule.methods.extraction import Extraction, extract, features_at
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.scan import Machine
    from lobule.scanning.tile_features import Tiling

    cohort = as_cohort(cases)
    encoders = open_encoders(backbone or encoder, weights, unverified=unverified, mpp=mpp)
    tile = tile or default_tile(encoders)
    only_size = encoders[0].input_px if len(encoders) == 1 else None
    tiling = Tiling(mpp, tile, input_px or only_size or tile, tissue_share, stains)
    stored = dtype or ("float32" if layout == "clam" else "float16")
    extraction = Extraction(tiling, stored, layout, keep_encoder, tokens)
    require_ray_options(runner, {"address": address, "workers": workers, "worker_cpus": worker_cpus})
    run = None
    if runner == "ray":
        from lobule.cluster.session import ClusterOptions
        from lobule.cluster.sources import EncoderSource, extract_on_ray

        chosen = tuple(with_weights(backbone or encoder, weights))
        source = EncoderSource(chosen, unverified, extraction, str(out))
        run = extract_on_ray(source, ClusterOptions(address, workers, worker_cpus))
    with features_at(out, fresh) as (folder, store):
        return extract(
            encoders,
            cohort,
            folder,
            extraction,
            ScanOptions(mpp=slide_mpp, upsample=upsample, **_tissue_option(tissue)),
            Machine.with_layout(
                memory_layout, device, precision, max_ram, readers, batch, runtime, jpeg_decoder
            ),
            fresh=fresh,
            retry_failed=retry_failed,
            progress=progress,
            store=store,
            run=run,
        )


def open_encoders(
    names: str | Sequence[str],
    weights: str | Path | Sequence[str | Path],
    *,
    unverified: bool = False,
    mpp: float | None = None,
) -> list[Encoder]:
    """Open encoders with their weights, and warn if one was made for another µm/px."""
    import logging

    from lobule.encoders import ENCODERS
    from lobule.encoders.load import mpp_warning, open_encoder

    encoders = []
    for name, source in with_weights(names, weights):
        encoders.append(open_encoder(name, source, unverified=unverified))
        if mpp is not None and name in ENCODERS and (warning := mpp_warning(ENCODERS[name], mpp)):
            logging.getLogger("lobule.encoders").warning("%s", warning)
    return encoders


def with_weights(
    names: str | Sequence[str], weights: str | Path | Sequence[str | Path]
) -> list[tuple[str, str | Path]]:
    """Each encoder with its weights: "pretrained", "random", or a file that exists.

    Raises:
        ConfigError: The numbers differ, an encoder is named twice, or a file does not exist.
    """
    from lobule.errors import ConfigError

    names = [names] if isinstance(names, str) else list(names)
    sources = [weights] if isinstance(weights, str | Path) else list(weights)
    if len(sources) == 1:
        sources *= len(names)
    if len(sources) != len(names) or not names:
        raise ConfigError(
            f"{len(sources)} weights for {len(names)} encoders",
            expected="one for all encoders, or one for each in the same order",
        )
    if len({name.removeprefix("torchvision:") for name in names}) < len(names):
        raise ConfigError(
            "an encoder is named twice",
            actual=", ".join(names),
            remedy="Name each encoder once; other weights of it need a folder of their own",
        )
    for source in sources:
        if source not in ("pretrained", "random") and not Path(source).is_file():
            raise ConfigError(
                "there is no such weights file",
                subject=repr(str(source)),
                expected="the path of a file on this machine, `pretrained` or `random`",
            )
    return list(zip(names, sources, strict=True))


def default_tile(encoders: Sequence[Encoder]) -> int:
    """The side of the tiles that encoders are made for.

    Raises:
        ConfigError: They are made for tiles of different sizes.
    """
    from lobule.encoders import ENCODERS
    from lobule.errors import ConfigError

    sides = {
        one.name: ENCODERS[one.name].default_tile_px if one.name in ENCODERS else DEFAULT_TILE_PX
        for one in encoders
    }
    if len(set(sides.values())) > 1:
        raise ConfigError(
            "these encoders are made for tiles of different sizes",
            actual=", ".join(f"{name} {side} px" for name, side in sides.items()),
            remedy="Choose one size with --tile, or extract their features one after the other",
        )
    return next(iter(sides.values()))
