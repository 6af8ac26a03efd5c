"""The functions of the Python API, which the command line calls too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.errors import ConfigError
from lobule.settings import converted, setting_types

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.cohort import Cohort
    from lobule.evaluation import Evaluation
    from lobule.scanning.cases import Progress
    from lobule.scanning.scan import ScanReport


def train(
    method: str,
    cohort: Cohort | str | Path,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    machine: Mapping[str, Any] | None = None,
    **method_options: Any,
) -> Bundle:
    """Train a method on a cohort and write the trained model as a bundle.

    Args:
        method: Name of the method, such as "scannet".
        cohort: A cohort, or the path of its manifest.
        out: Folder for the bundle and the checkpoints of the training.
        settings: Changed fields of the method's `Config`, by name. A nested field is written with a dot,
            such as "augment.hue". Text is converted to the type of the field.
        machine: Fields of the method's `TrainMachine`, such as device, precision or workers.
        **method_options: Further arguments of the method's `train` function: val, seed, resume, fresh.

    Returns:
        The trained bundle.

    Raises:
        ConfigError: The method cannot be trained, or a setting is unknown or invalid.

    Examples:
        >>> bundle = train("scannet", "cohort.csv", "model", settings={"mpp": 0.5})  # doctest: +SKIP
    """
    from lobule.methods import method_module

    module = method_module(method)
    if not hasattr(module, "train"):
        raise ConfigError(
            f"'{method}' is not trained by Lobule",
            remedy="Convert existing weights with `lobule weights convert`",
        )
    config = config_of(module.Config, settings or {})
    bundle: Bundle = module.train(
        config, as_cohort(cohort), out, machine=module.TrainMachine(**(machine or {})), **method_options
    )
    return bundle


def config_of(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """Create a method's `Config` with some settings changed.

    Args:
        kind: The `Config` class of the method.
        settings: Changed settings by name. A nested one is written with a dot. Text is converted to the
            annotated type.

    Raises:
        ConfigError: A setting is unknown, or a value does not have the type of its setting.
    """
    values: dict[str, Any] = kind().to_dict()
    for name, value in settings.items():
        inner, types = values, setting_types(kind)
        *outer, last = name.split(".")
        for level in outer:
            is_group = isinstance(inner.get(level), dict)
            inner = inner[level] if is_group else {}
            types = setting_types(types[level]) if is_group else {}
        if last not in inner or isinstance(inner[last], dict):
            near = get_close_matches(name, values, 1)
            raise ConfigError(
                f"no setting '{name}'",
                expected=", ".join(values),
                remedy=f"Did you mean '{near[0]}'?" if near else None,
            )
        inner[last] = converted(name, value, types[last])
    return kind.from_dict(values)


def scan(
    bundle: str | Path,
    cases: Cohort | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    trust: bool = False,
    shard: tuple[int, int] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    verify: str = "changed",
    progress: Progress | None = None,
    machine: dict[str, Any] | None = None,
    **options: Any,
) -> ScanReport:
    """Scan cases with a bundle and write maps, findings and scores to a results folder.

    An interrupted scan resumes when it is called again with the same arguments.

    Args:
        bundle: Folder of the trained model.
        cases: A cohort, the path of a manifest, or the paths of slides.
        out: The results folder.
        trust: Allow a TorchScript bundle, which can run code.
        shard: (i, n) scans every n-th case, starting with the i-th.
        fresh: Delete existing results first.
        retry_failed: Scan failed cases and fields again.
        verify: "full" hashes every input file again; "changed" hashes only files whose size, modification
            time or inode changed. Cases whose input changed are scanned again.
        progress: Receives the progress of the scan.
        machine: Fields of `Machine`, such as device, precision or max_ram.
        **options: Fields of `ScanOptions`: stride, refine, budget, upsample, mpp, tissue, settings.

    Returns:
        A report with the number of cases by status, and the reason for each failed case.

    Raises:
        ConfigError: The method does not support an option, or a setting cannot be changed for a scan.
        BundleError: The bundle is damaged.
        ResultsError: The results folder belongs to another bundle or is in use.
    """
    from lobule.bundles import read_bundle
    from lobule.evaluation.leakage import store_training_patients
    from lobule.methods import load
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.scan import Machine
    from lobule.scanning.scan import scan as run

    opened = read_bundle(bundle)
    _refuse_ignored(opened, options)
    if options.get("settings"):
        options["settings"] = scan_settings(opened, options["settings"])
    bundle_summary = {
        "method": opened.method,
        "fingerprint": opened.fingerprint,
        "classes": list(opened.classes),
    }
    try:
        return run(
            load(opened, trust=trust),
            bundle_summary,
            as_cohort(cases),
            out,
            ScanOptions(**options),
            Machine(**(machine or {})),
            shard=shard,
            fresh=fresh,
            retry_failed=retry_failed,
            verify=verify,
            progress=progress,
        )
    finally:
        # An evaluation must be able to refuse training patients, also after an interrupted scan.
        store_training_patients(out, opened)


def _refuse_ignored(bundle: Bundle, options: Mapping[str, Any]) -> None:
    """Raise an error for an option that the method would ignore, since results would not be as requested."""
    from lobule.methods import method_module

    module = method_module(bundle.method)
    ignored = set(getattr(module, "SCAN_IGNORES", ())) | (
        set() if getattr(module, "REFINES", False) else {"refine"}
    )
    for name in sorted(ignored & options.keys()):
        if options[name] not in (None, False):
            raise ConfigError(
                f"{bundle.method} does not support --{name}", remedy=f"Remove the option --{name}"
            )


def scan_settings(bundle: Bundle, requested: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the settings that a scan changes to their types.

    Only settings that the method lists in `SCAN_SETTINGS` may be changed. The bundle fixes all others.

    Args:
        bundle: The bundle that scans.
        requested: Settings by name, as text or as values.

    Raises:
        ConfigError: A setting may not be changed, or a value does not have its type.
    """
    from lobule.methods import method_module

    module = method_module(bundle.method)
    allowed: Collection[str] = getattr(module, "SCAN_SETTINGS", ())
    types = setting_types(module.Config) if allowed else {}
    if isinstance(
        allowed, Mapping
    ):  # A mapping gives an example value for each name, whose type replaces that of the config.
        types |= {name: type(value) for name, value in allowed.items()}
    for name in requested:
        if name not in allowed:
            raise ConfigError(
                f"'{name}' cannot be set for a scan with {bundle.method}",
                expected=", ".join(allowed) or "no settings, because all of them are fixed by the bundle",
            )
    return {name: converted(name, value, types[name]) for name, value in requested.items()}


def extract_features(
    cases: Cohort | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    backbone: str = "resnet50",
    weights: str | Path = "pretrained",
    mpp: float = 0.5,
    tile: int = 224,
    input_px: int | None = None,
    tissue: bool = True,
    tissue_share: float = 0.1,
    slide_mpp: float | None = None,
    upsample: bool = False,
    layout: str = "trident",
    dtype: str | None = None,
    keep_encoder: bool = True,
    retry_failed: bool = False,
    machine: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ScanReport:
    """Compute features of every tissue tile and write one HDF5 file per case.

    Args:
        cases: A cohort, the path of a manifest, or the paths of slides.
        out: Folder for the feature files.
        backbone: Name of the network, such as "resnet50", "timm:NAME" or "lobule:NAME".
        weights: "pretrained", "random", or a file that contains only weights.
        mpp: Resolution of the tiles in µm/px.
        tile: Width of a tile in pixels.
        input_px: Tiles are resized to this width. By default the width that the backbone requires, if it
            requires one, and otherwise that of the tile.
        tissue: Use only tiles with tissue.
        tissue_share: Smallest share of a tile that must be tissue.
        slide_mpp: The µm/px of slides that do not state it.
        upsample: Allow a resolution finer than that of the slide.
        layout: Layout of the files, "trident" or "clam".
        dtype: Type of the stored features; float16 by default, and float32 for the layout "clam".
        keep_encoder: Store the weights with the features, so that a bundle trained on them can scan slides.
        retry_failed: Try failed cases and tiles again.
        machine: Fields of `Machine`, such as device, precision or max_ram.
        progress: Receives the progress.

    Returns:
        A report with the number of cases by status, and the reason for each failed case.
    """
    from lobule.bundles import plain_weights
    from lobule.methods.extraction import Extraction, extract
    from lobule.nets.encoders import encoder
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.scan import Machine
    from lobule.scanning.tile_features import Tiling
    from lobule.tissue import TissueConfig

    encoder_weights: Any = weights if weights in ("pretrained", "random") else plain_weights(weights)
    network = encoder(backbone, encoder_weights)
    tiling = Tiling(mpp, tile, input_px or network.input_px or tile, tissue_share)
    stored = dtype or ("float32" if layout == "clam" else "float16")
    return extract(
        network,
        as_cohort(cases),
        out,
        Extraction(tiling, stored, layout, keep_encoder),
        ScanOptions(tissue=TissueConfig() if tissue else None, mpp=slide_mpp, upsample=upsample),
        Machine(**(machine or {})),
        retry_failed=retry_failed,
        progress=progress,
    )


def evaluate(
    results: str | Path | None,
    cohort: Cohort | str | Path | None = None,
    *,
    submission: str | Path | Sequence[str | Path] = (),
    against: str | Path | None = None,
    bundle: str | Path | None = None,
    to: str | Path | None = None,
    plots: bool = True,
    **options: Any,
) -> Evaluation:
    """Evaluate results on a labelled cohort.

    Args:
        results: A results folder, or None if a submission is evaluated.
        cohort: A cohort or the path of its manifest. Only a submission with the option `masks` needs none.
        submission: Files or folders in the official forms of Camelyon16, instead of `results`.
        against: Another results folder or submission to compare with on the same cases.
        bundle: The bundle that made the results. It names the training patients if the results do not.
        to: Folder for the numbers, the table and the plots. By default nothing is written.
        plots: Also draw the plots in `to`.
        **options: Fields of `evaluation.Options`, such as by, split, positive or score.

    Returns:
        The evaluation, with an interval for each measure.

    Raises:
        UsageError: Results or cohort are missing.
        Leakage: The cohort shares patients with the training set.
    """
    from lobule.cohort import Cohort, read_cohort
    from lobule.errors import UsageError
    from lobule.evaluation import Options, evaluate_source, official_cohort, open_source, read_submission
    from lobule.evaluation.plots import need_plots
    from lobule.evaluation.sources import Source, open_results_source

    evaluation_options = Options.of(**options)
    if to is not None and plots:
        need_plots()
    submitted = [submission] if isinstance(submission, str | Path) else list(submission)
    source: Source
    if submitted:
        source = read_submission(submitted)
    elif results is not None:
        source = open_results_source(results, evaluation_options)
    else:
        raise UsageError("there is nothing to evaluate", expected="a results folder or a submission")
    if cohort is None:
        if not submitted or evaluation_options.masks is None:
            raise UsageError(
                "there is no cohort to evaluate on", remedy="Pass a cohort, or a submission with masks"
            )
        labelled_cohort = official_cohort(source, evaluation_options)
    else:
        # The slides may have been moved since the scan; the results contain everything that is needed.
        labelled_cohort = cohort if isinstance(cohort, Cohort) else read_cohort(cohort, check_files=False)
    other = None if against is None else open_source(against, evaluation_options)
    evaluation = evaluate_source(source, labelled_cohort, evaluation_options, against=other, bundle=bundle)
    if to is not None:
        evaluation.write(to, plots=plots)
    return evaluation


def as_cohort(cases: Cohort | str | Path | Sequence[str | Path]) -> Cohort:
    """Return a cohort for a cohort, the path of a manifest, or the paths of one or several slides."""
    from lobule.cohort import Cohort, cohort_of_paths, read_cohort

    if isinstance(cases, Cohort):
        return cases
    if isinstance(cases, str | Path):
        if str(cases).lower().endswith((".csv", ".parquet")):
            return read_cohort(cases)
        return cohort_of_paths([str(cases)])
    return cohort_of_paths([str(path) for path in cases])
