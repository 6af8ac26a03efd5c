"""The verbs of the Python API; the command line calls the same."""

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
    """Train a method on a cohort (or a manifest) and write the bundle to `out`.

    `settings` are those of the method's `Config`, by name ("augment.hue" for what is nested); text is
    converted. `machine` are those of its `TrainMachine` (device, precision, workers, …). `how` goes to the
    method's `train`: val, seed, resume, fresh.
    """
    from lobule.methods import method_module

    module = method_module(method)
    if not hasattr(module, "train"):
        raise ConfigError(f"'{method}' is not trained by Lobule", remedy="Use `lobule weights convert`")
    config = config_of(module.Config, settings or {})
    bundle: Bundle = module.train(
        config, as_cohort(cohort), out, machine=module.TrainMachine(**(machine or {})), **method_options
    )
    return bundle


def config_of(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """Create a method's `Config` with some settings changed; text is converted to the annotated types."""
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
    """Scan cases with a bundle into a results folder.

    `cases` is a cohort, a manifest, or slides. `options` are those of `ScanOptions` (stride, refine, budget,
    upsample, mpp, tissue, settings), `machine` those of `Machine` (device, precision, max_ram, …).
    With `verify="full"` every input file is read again, and results whose input changed are computed anew;
    by default a file is read again only if its size, modification time or inode changed.
    """
    from lobule.bundles import read_bundle
    from lobule.evaluation.leakage import keep_training_patients
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
        # an evaluation must be able to refuse the training patients, of an interrupted scan too
        keep_training_patients(out, opened)


def _refuse_ignored(bundle: Bundle, options: Mapping[str, Any]) -> None:
    """What a method would not heed is refused: results would not be those that were asked for."""
    from lobule.methods import method_module

    module = method_module(bundle.method)
    ignored = set(getattr(module, "SCAN_IGNORES", ())) | (
        set() if getattr(module, "REFINES", False) else {"refine"}
    )
    for name in sorted(ignored & options.keys()):
        if options[name] not in (None, False):
            raise ConfigError(
                f"--{name} means nothing to a scan with {bundle.method}", remedy=f"Leave --{name} away"
            )


def scan_settings(bundle: Bundle, requested: Mapping[str, Any]) -> dict[str, Any]:
    """What a scan asks otherwise than the bundle's config, typed; only `SCAN_SETTINGS` of its method."""
    from lobule.methods import method_module

    module = method_module(bundle.method)
    allowed: Collection[str] = getattr(module, "SCAN_SETTINGS", ())
    types = setting_types(module.Config) if allowed else {}
    if isinstance(allowed, Mapping):  # names with a value of their type, where a config has another or none
        types |= {name: type(value) for name, value in allowed.items()}
    for name in requested:
        if name not in allowed:
            raise ConfigError(
                f"'{name}' cannot be set for a scan with {bundle.method}",
                expected=", ".join(allowed) or "no settings: all of them belong to the bundle",
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
    """Write the features of every tile of tissue, one HDF5 file a case, into the folder `out`.

    `weights` is a file of plain weights, "pretrained" or "random"; `input_px` resizes tiles for the backbone,
    which takes its own size where it has one alone. `slide_mpp` is the µm/px of slides that do not say it.
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
    """Measure a results folder on a cohort; with `to`, write the numbers, the table and the plots there.

    `submission` (Camelyon16's official forms) stands in for `results`, which then is None; with `masks` it
    needs no cohort. `against` is another results folder or submission; `bundle` names the training
    patients where the results do not carry them. `options` are those of `evaluation.Options` (by, split,
    positive, score, …).
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
        raise UsageError("nothing to evaluate", expected="results or a submission")
    if cohort is None:
        if not submitted or evaluation_options.masks is None:
            raise UsageError("no cohort to evaluate on", remedy="Give a cohort, or a submission with masks")
        labelled_cohort = official_cohort(source, evaluation_options)
    else:
        # slides may be elsewhere by now: results carry what is needed of them
        labelled_cohort = cohort if isinstance(cohort, Cohort) else read_cohort(cohort, check_files=False)
    other = None if against is None else open_source(against, evaluation_options)
    evaluation = evaluate_source(source, labelled_cohort, evaluation_options, against=other, bundle=bundle)
    if to is not None:
        evaluation.write(to, plots=plots)
    return evaluation


def as_cohort(cases: Cohort | str | Path | Sequence[str | Path]) -> Cohort:
    """A cohort from a cohort, a manifest's path, a slide's path, or several slides' paths."""
    from lobule.cohort import Cohort, cohort_of_paths, read_cohort

    if isinstance(cases, Cohort):
        return cases
    if isinstance(cases, str | Path):
        if str(cases).lower().endswith((".csv", ".parquet")):
            return read_cohort(cases)
        return cohort_of_paths([str(cases)])
    return cohort_of_paths([str(path) for path in cases])
