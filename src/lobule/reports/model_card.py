"""A model card of a bundle, in the layout of Hugging Face: YAML front matter and Markdown sections."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lobule.bundles import Bundle, read_bundle
from lobule.errors import UsageError
from lobule.files import read_json
from lobule.reports.case import MISUSE
from lobule.results.result import RESEARCH_USE

Data = Mapping[str, Any]
PAPERS = {
    "scannet": "https://arxiv.org/abs/1707.09597",
    "reverse_distillation": "https://arxiv.org/abs/2303.10342",
    "chowder": "https://arxiv.org/abs/1802.02212",
    "rakhlin": "https://arxiv.org/abs/1802.00752",
    "four_view": "https://arxiv.org/abs/1903.08297",
}
NOT_KNOWN = "Not recorded in the bundle. State it before you publish the model."


def model_card(
    bundle: str | Path, evaluation: str | Path | None = None, *, licences: Mapping[str, str] | None = None
) -> str:
    """Return the model card of a bundle as Markdown.

    Args:
        bundle: Folder of the bundle.
        evaluation: `evaluation.json` of `lobule evaluate --out`, which has intervals and subgroups.
        licences: The licences of pretrained networks by their names.

    Raises:
        UsageError: The folder is not a bundle, or the file is not an evaluation.
    """
    opened = read_bundle(bundle)
    measured: Data | None = None
    if evaluation is not None:
        measured = read_json(evaluation)
        if not isinstance(measured, dict) or "tasks" not in measured:
            raise UsageError(
                "the file is not an evaluation", subject=evaluation,
                expected="evaluation.json of `lobule evaluate --out`",
            )  # fmt: skip
    sections = [
        _front_matter(opened),
        f"# Lobule {opened.method} model",
        f"**{RESEARCH_USE}**",
        _section("Model", _model(opened)),
        _section("Intended use and limits", [MISUSE]),
        _section("Training data", _training_data(opened)),
        _section("Training", _training(opened)),
        _section("Evaluation", _evaluation(opened, measured)),
        _section("Calibration", _calibration(opened)),
        _section("Licence", _licence(opened, licences or {})),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(bundle: Bundle) -> str:
    kind = "mammography" if bundle.method in ("four_view", "gmic") else "histopathology"
    lines = [
        "---",
        "library_name: lobule",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("medical", kind, "breast-cancer", "research-use-only", bundle.method)),
        "---",
    ]
    return "\n".join(lines)


def _section(title: str, lines: Iterator[str] | list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines)


def _rows(pairs: Mapping[str, object]) -> list[str]:
    shown = {name: value for name, value in pairs.items() if value not in (None, "", [], {})}
    return [f"- {name}: {value}" for name, value in shown.items()] or [NOT_KNOWN]


def _model(bundle: Bundle) -> list[str]:
    return _rows(
        {
            "method": bundle.method,
            "paper": PAPERS.get(bundle.method),
            "classes": ", ".join(bundle.classes),
            "resolution": None if bundle.mpp is None else f"{bundle.mpp:g} µm/px",
            "fingerprint": f"`{bundle.fingerprint}`",
            "Lobule": bundle.provenance.get("lobule"),
            "files": ", ".join(sorted(bundle.files)),
        }
    )


def _training_data(bundle: Bundle) -> list[str]:
    """Counts only: names of cases and patients do not belong into a public card."""
    provenance = bundle.provenance
    counts: dict[str, object] = {
        "patients": len(bundle.patients) or None,
        "training cases": _count(provenance.get("train_cases")),
        "validation cases": _count(provenance.get("val_cases")),
        "cases that could not be read": _count(provenance.get("lost")),
    }
    labels = provenance.get("labels")
    for group, by_label in labels.items() if isinstance(labels, dict) else ():
        counts[f"labels, {group}"] = _counted(by_label)
    counts["sites"] = _counted(provenance.get("sites"))
    notes = provenance.get("notes")
    return [*_rows(counts), *(f"- note: {note}" for note in (notes if isinstance(notes, list) else ()))]


def _counted(counts: object) -> str:
    pairs = counts.items() if isinstance(counts, dict) else ()
    return ", ".join(f"{name} {count}" for name, count in pairs)


def _count(value: object) -> int | None:
    return len(value) if isinstance(value, list | dict) else None


def _short(value: object) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]} …"


def _training(bundle: Bundle) -> list[str]:
    settings = {name: _short(value) for name, value in bundle.config.items()}
    lines = [f"- seed: {bundle.provenance['seed']}"] if "seed" in bundle.provenance else []
    return [
        *lines,
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {k} | {_cell(v)} |" for k, v in settings.items()),
    ]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _evaluation(bundle: Bundle, data: Data | None) -> Iterator[str]:
    metrics = {name: value for name, value in bundle.metrics.items() if isinstance(value, int | float)}
    if metrics:
        yield "On the validation cases of the training, without intervals:\n"
        yield "| measure | value |"
        yield "|---|---|"
        for name, value in metrics.items():
            yield f"| {name} | {value:.4g} |"
        yield ""
    if data is None:
        yield "No independent evaluation was supplied; add one with `--evaluation evaluation.json`."
        return
    yield "On other cases; 95 % intervals from resampled patients:\n"
    yield "| target | group | cases | positive | AUROC | AUPRC |"
    yield "|---|---|---|---|---|---|"
    for name, task in data["tasks"].items():
        for group, block in _groups(task):
            cells = [
                name,
                group,
                block[task["unit"]],
                block["positive"],
                *map(_estimate, (block["auroc"], block["auprc"])),
            ]
            yield "| " + " | ".join(map(_cell, cells)) + " |"
    if data.get("lesions"):
        yield "\n| group | lesions | FROC |"
        yield "|---|---|---|"
        for group, block in _groups(data["lesions"]):
            yield f"| {_cell(group)} | {block['lesions']} | {_estimate(block['froc_score'])} |"


def _groups(report: Data) -> Iterator[tuple[str, Data]]:
    yield "all", report["all"]
    for column, values in report.get("by", {}).items():
        for value, block in values.items():
            yield f"{column} {value}", block


def _estimate(estimate: Data) -> str:
    if estimate["value"] is None:
        return "–"
    text = f"{estimate['value']:.3f}"
    return (
        text if estimate.get("low") is None else f"{text} ({estimate['low']:.3f} to {estimate['high']:.3f})"
    )


def _calibration(bundle: Bundle) -> list[str]:
    if not bundle.calibration:
        return ["The scores are not calibrated: they rank cases, and are not probabilities."]
    return [
        "The scores are calibrated:",
        "",
        "```json",
        json.dumps(bundle.calibration, indent=1)[:3000],
        "```",
    ]


def _licence(bundle: Bundle, licences: Data) -> list[str]:
    """State the licence of each pretrained network that the model started from or contains."""
    stored = bundle.provenance.get("encoder_licence")
    recorded = [entry for entry in stored if isinstance(entry, dict)] if isinstance(stored, list) else []
    lines = [_recorded_licence(entry) for entry in recorded]
    names_recorded = {entry.get("weights") for entry in recorded}
    for name in _pretrained(bundle.config):
        if name.partition("@")[0] in names_recorded:
            continue
        licence = licences.get(name) or licences.get(name.removeprefix("scannet_"))
        lines.append(f"- licence of the encoder {name}: {licence or NOT_KNOWN}")
    if not lines:
        lines.append("- encoder: none that was trained before; all weights were initialised at random")
    return [*lines, f"- licence of the weights in this bundle: {NOT_KNOWN}"]


def _recorded_licence(recorded: Data) -> str:
    """State the licence of an encoder of `lobule.encoders`, as its bundle records it."""
    forbidden = [
        text
        for key, text in (("commercial", "commercial use"), ("redistribution", "passing on the weights"))
        if not recorded.get(key, True)
    ]
    line = f"- licence of the encoder {recorded.get('weights')}: {recorded.get('licence')}"
    return f"{line}; it forbids {' and '.join(forbidden)}" if forbidden else line


def _pretrained(config: Data) -> list[str]:
    """Return the names of networks with pretrained weights in the settings of a bundle."""
    names = []
    for key in ("encoders", "encoder", "teacher", "trunk", "architecture"):
        value = config.get(key)
        names += [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    weights = config.get("weights")
    stated = list(weights) if isinstance(weights, list | tuple) else [weights]
    is_random = [str(value) == "random" for value in stated] * (len(names) if len(stated) == 1 else 1)
    return [
        name for name, random in zip(names, [*is_random, *[False] * len(names)], strict=False) if not random
    ]
