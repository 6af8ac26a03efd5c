"""Train a model, and scan cases with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lobule.api.runners import Runner, require_ray_options
from lobule.settings import checked_options

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.cohort import Cohort
    from lobule.scanning.progress import Progress
    from lobule.scanning.scan import ScanReport
    from lobule.tissue import TissueConfig
    from lobule.training.fitting import FitProgress

Precision = Literal["auto", "float32", "bfloat16"]
ScanPrecision = Literal["auto", "float32", "bfloat16", "int8"]
Runtime = Literal["auto", "torch", "openvino"]
Layout = Literal["auto", "channels-last", "contiguous"]
JpegDecoder = Literal["cpu", "nvimagecodec"]
GIB = 1 << 30


@checked_options
def train(
    method: str,
    cohort: Cohort | str | Path,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    val: str | None = "val",
    seed: int = 0,
    fresh: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    processes: bool = False,
    max_ram: int = 2 * GIB,
    tissue: TissueConfig | None = None,
    progress: FitProgress | None = None,
) -> Bundle:
    """Train a method on a cohort and write the trained model as a bundle.

    An interrupted training continues when it is called again with the same arguments, and gives the weights
    of an uninterrupted one.

    Args:
        method: Name of the method, such as "scannet"; `lobule methods` lists them.
        cohort: A cohort, or the path of its manifest.
        out: Folder for the bundle and the checkpoints of the training.
        settings: Changed settings of the method by name, as values or as text. A setting of a group has a
            dotted name, such as "augment.hue". `lobule methods NAME` lists them.
        val: The split for validation. If the cohort has no such split, patients are held out. None trains
            without validation.
        seed: Seed of the weights, the sampling and the augmentation.
        fresh: Delete an existing training in `out` first.
        device: "auto", "cpu", "mps", "cuda:0", or several cards such as "cuda:0,cuda:2".
        precision: "auto" uses bfloat16 on a GPU that supports it.
        workers: Workers that sample patches; by default one per core.
        processes: Use processes instead of threads as workers.
        max_ram: Memory in bytes for cached data and for scans during the training, besides the model.
        tissue: How tissue is detected, for methods that draw patches from tissue.
        progress: Receives the progress of the training.

    Returns:
        The trained bundle.

    Raises:
        ConfigError: The method cannot be trained, or a setting is unknown or invalid.
        CohortError: The manifest has problems.
        ResultsError: `out` belongs to another training or is in use.

    Examples:
        >>> bundle = train("scannet", "cohort.csv", "model", settings={"mpp": 0.5})  # doctest: +SKIP
    """
    from lobule.cohort import as_cohort
    from lobule.methods import find_method

    chosen = find_method(method)
    run, config, cases = chosen.trainer(), chosen.configured(settings or {}), as_cohort(cohort)
    # This module imports torch, which takes seconds. Everything above is checked before.
    from lobule.training.fitting import TrainMachine

    return run(
        config,
        cases,
        out,
        val=val,
        seed=seed,
        resume=not fresh,
        fresh=fresh,
        machine=TrainMachine(device, precision, workers, processes, max_ram),
        tissue=tissue,
        progress=progress,
    )


@checked_options
def scan(
    bundle: str | Path,
    cases: Cohort | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    stride: int | None = None,
    refine: bool = False,
    budget: float | None = None,
    slide_mpp: float | None = None,
    upsample: bool = False,
    tissue: TissueConfig | bool = True,
    settings: Mapping[str, Any] | None = None,
    shard: tuple[int, int] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    verify: Literal["changed", "full"] = "changed",
    like: str | Path | None = None,
    runner: Runner = "local",
    address: str | None = None,
    workers: int | None = None,
    worker_cpus: int | None = None,
    divide_above: int | None = None,
    trust: bool = False,
    device: str = "auto",
    runtime: Runtime = "auto",
    precision: ScanPrecision = "auto",
    memory_layout: Layout = "auto",
    jpeg_decoder: JpegDecoder | None = None,
    max_ram: int = 2 * GIB,
    readers: int | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> ScanReport:
    """Scan cases with a bundle and write maps, findings and scores to a results folder.

    An interrupted scan resumes when it is called again with the same arguments.

    Args:
        bundle: Folder of the trained model.
        cases: A cohort, the path of a manifest, or the paths of slides.
        out: The results folder, or the URL of a folder in an object store, such as s3://bucket/results.
        stride: Pixels between map cells, at the resolution of the model.
        refine: Scan coarsely first, then refine where tumour is likely.
        budget: Time limit for refining, in seconds per case.
        slide_mpp: The µm/px of slides that do not state it.
        upsample: Allow a resolution finer than that of the slide.
        tissue: Scan only tissue. False scans whole slides; a `TissueConfig` changes the detection.
        settings: Changed settings of the method. Most are fixed by the bundle; the error names the others.
        shard: (i, n) scans shard i of n. Shards have about the same estimated area of tissue.
        fresh: Delete existing results first.
        retry_failed: Scan failed cases and fields again.
        verify: "full" hashes every input file again; "changed" hashes only files whose size, modification
            time or inode changed. Cases whose input changed are scanned again.
        like: The record of an earlier run (`runs/RUN/run.json` in its results folder). The scan repeats it
            with its options and engine settings; the bundle and the cases must be the same.
        runner: "local" scans in this process; "ray" scans with workers on Ray (extra `ray`).
        address: Address of a Ray cluster; by default, Ray is started on this machine.
        workers: Number of workers on Ray; by default one per GPU, or one per machine without GPUs.
        worker_cpus: CPU cores of a worker on Ray; by default all cores, divided by the number of workers.
        divide_above: On Ray, slides whose file has more bytes are divided among all workers; default 4 GiB.
        trust: Allow a TorchScript bundle, which can run code.
        device: "auto", "cpu", "mps", "cuda:0", or several cards such as "cuda:0,cuda:2".
        runtime: Library that computes the networks on a CPU. "auto" measures torch and, if the extra
            `openvino` is installed, OpenVINO once per machine and model, and stores the faster one.
        precision: "auto" measures the fastest choice once per machine and model, and stores it. "int8" needs
            a bundle that `lobule weights quantize` wrote; for such a bundle it is the default.
        memory_layout: Memory layout of the model; "auto" works as for `precision`.
        jpeg_decoder: What decodes JPEG tiles: "cpu" (the default), or "nvimagecodec" on a CUDA card (extra
            `nvimagecodec`), which rounds differently.
        max_ram: Memory in bytes to use besides the model.
        readers: Reading threads; by default one per core.
        batch: Number of fields per batch.
        progress: Receives the progress of the scan.

    Returns:
        A report with the number of cases by status, and the reason for each failed case.

    Raises:
        ConfigError: The method does not support an option, or a setting cannot be changed for a scan.
        BundleError: The bundle is damaged.
        ResultsError: The results folder belongs to another bundle or is in use.
    """
    from lobule.bundles import read_bundle
    from lobule.cohort import as_cohort
    from lobule.methods import check_scan, load
    from lobule.results.folder import PATIENTS, store_training_patients
    from lobule.results.runs import read_run
    from lobule.results.store import results_at

    cohort, opened = as_cohort(cases), read_bundle(bundle)
    requested = {"stride": stride, "refine": refine, "slide_mpp": slide_mpp, "upsample": upsample}
    changed = check_scan(opened, requested, settings or {})
    # These modules import torch, which takes seconds. Everything above is checked before.
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.run_record import origin_of
    from lobule.scanning.run_repeat import options_of_run
    from lobule.scanning.scan import Machine
    from lobule.scanning.scan import scan as run

    options = ScanOptions(
        stride=stride,
        refine=refine,
        budget=budget,
        upsample=upsample,
        mpp=slide_mpp,
        settings=changed,
        **_tissue_option(tissue),
    )
    repeat = None if like is None else read_run(like)
    if repeat is not None:
        options = options_of_run(repeat, options)
    summary = {"method": opened.method, "fingerprint": opened.fingerprint, "classes": list(opened.classes)}
    machine = Machine.with_layout(
        memory_layout, device, precision, max_ram, readers, batch, runtime, jpeg_decoder
    )
    cluster = {
        "address": address, "workers": workers, "worker_cpus": worker_cpus, "divide_above": divide_above,
    }  # fmt: skip
    require_ray_options(runner, cluster, shard)
    refuse_shard_in_store(out, shard)
    run_options: dict[str, Any] = {
        "fresh": fresh, "retry_failed": retry_failed, "verify": verify, "progress": progress,
        "repeat": repeat, "origin": origin_of(opened.path, opened.config), "int8_folder": opened.int8_folder,
    }  # fmt: skip
    with results_at(out, fresh=fresh) as (folder, store):
        try:
            if runner == "ray":
                from lobule.cluster.scan import scan_on_ray
                from lobule.cluster.session import ClusterOptions
                from lobule.cluster.sources import BundleSource

                source = BundleSource(str(Path(bundle).absolute()), summary, trust)
                workers_of_ray = ClusterOptions(address, workers, worker_cpus)
                if divide_above is not None:
                    workers_of_ray = replace(workers_of_ray, divided_bytes=divide_above)
                report = scan_on_ray(
                    source, cohort, folder, options, machine, workers_of_ray, store=store, **run_options
                )
            else:
                predictor = load(opened, trust=trust)
                report = run(
                    predictor, summary, cohort, folder, options, machine, shard=shard, store=store,
                    **run_options,
                )  # fmt: skip
        finally:
            # An evaluation must be able to refuse training patients, also after an interrupted scan.
            store_training_patients(folder, opened.fingerprint, opened.patients)
            if store is not None:
                store.publish_file(folder / PATIENTS)
    return report


def refuse_shard_in_store(out: str | Path, shard: tuple[int, int] | None) -> None:
    """Raise `ConfigError` for a shard whose results would be in an object store."""
    from lobule.errors import ConfigError
    from lobule.files import is_url

    if shard is not None and is_url(out):
        raise ConfigError(
            "--shard cannot write to an object store",
            subject=out,
            remedy="Use --runner ray, a folder that all machines see, or one URL for each part of the cohort",
        )


def _tissue_option(tissue: TissueConfig | bool) -> dict[str, Any]:
    """Return the argument of `ScanOptions` for whole slides, for tissue, or for other tissue settings."""
    if tissue is True:
        return {}
    return {"tissue": tissue or None}
