"""Model cards: what the bundle and an evaluation state, by counts and without names of patients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lobule.bundles import Bundle, patient_hash, write_bundle
from lobule.cli import COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cli.weights.catalog import licences
from lobule.errors import UsageError
from lobule.reports.model_card import model_card
from lobule.results.result import RESEARCH_USE


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    provenance = {
        "seed": 7, "train_cases": ["secret-1", "secret-2", "secret-3"], "val_cases": ["secret-4"],
        "notes": ["2 slides without tissue were left out"],
        "labels": {"training": {"normal": 1, "tumour": 2}, "validation": {"tumour": 1}},
        "sites": {"A": 3, "not stated": 1},
    }  # fmt: skip
    patients = tuple(patient_hash(f"patient {number}") for number in range(4))
    config = {"trunk": "tiny", "mpp": 0.5, "note": "a | b"}
    write_bundle(
        tmp_path / "bundle",
        Bundle("scannet", config, ("normal", "tumour"), 0.5, {"auroc": 0.91}, provenance, patients),
        texts={"forest.txt": "x"},
    )
    return tmp_path / "bundle"


def test_the_card_has_front_matter_and_every_section(bundle: Path) -> None:
    card = model_card(bundle)
    _, front, text = card.split("---\n", 2)
    assert front.splitlines()[0] == "library_name: lobule" and "- scannet" in front.splitlines()
    assert RESEARCH_USE in text
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Model", "Intended use and limits", "Training data", "Training", "Evaluation", "Calibration",
        "Licence",
    ]  # fmt: skip
    for expected in ("patients: 4", "training cases: 3", "validation cases: 1", "seed: 7", "| auroc | 0.91 |",
                     "labels, training: normal 1, tumour 2", "sites: A 3, not stated 1",
                     "not calibrated", "a \\| b", "2 slides without tissue", "1707.09597"):  # fmt: skip
        assert expected in text, expected
    assert "secret" not in card


def test_an_evaluation_adds_intervals_and_subgroups(bundle: Path, tmp_path: Path) -> None:
    block = {"cases": 40, "positive": 12, "auroc": {"value": 0.912, "low": 0.85, "high": 0.96},
             "auprc": {"value": None}}  # fmt: skip
    lesion = {"lesions": 31, "froc_score": {"value": 0.7, "low": 0.6, "high": 0.8}}
    data = {
        "tasks": {"tumour": {"unit": "cases", "all": block, "by": {"site": {"A": block}}}},
        "lesions": {"all": lesion, "by": {}},
    }
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(data))
    card = model_card(bundle, path)
    assert "| tumour | all | 40 | 12 | 0.912 (0.850 to 0.960) | – |" in card
    assert "| tumour | site A | 40 | 12 |" in card and "| all | 31 | 0.700 (0.600 to 0.800) |" in card
    path.write_text("[]")
    with pytest.raises(UsageError, match="not an evaluation"):
        model_card(bundle, path)
    with pytest.raises(UsageError, match="not a bundle"):
        model_card(tmp_path)


def test_the_command_prints_or_writes_the_card(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lobule info BUNDLE --card`, with the subgroups of an evaluation and the licence of the encoder."""
    root = LazyGroup("lobule", COMMANDS, help="")
    assert run(root, ["info", str(bundle), "--card"]) == 0
    assert capsys.readouterr().out.strip() == model_card(bundle, licences=licences()).strip()
    block = {"cases": 40, "positive": 12, "auroc": {"value": 0.912, "low": 0.85, "high": 0.96},
             "auprc": {"value": None}}  # fmt: skip
    data = {
        "tasks": {"tumour": {"unit": "cases", "all": block, "by": {"site": {"A": block}}}},
        "lesions": None,
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(data))
    arguments = [
        "--card",
        "--evaluation",
        str(tmp_path / "evaluation.json"),
        "--out",
        str(tmp_path / "README.md"),
    ]
    assert run(root, ["info", str(bundle), *arguments]) == 0
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert written == model_card(bundle, tmp_path / "evaluation.json", licences=licences())
    assert "| tumour | site A | 40 | 12 | 0.912 (0.850 to 0.960) | – |" in written
    assert run(root, ["info", str(tmp_path / "evaluation.json"), "--card"]) == 2
    assert "not a bundle" in capsys.readouterr().err


def test_the_commands_are_listed() -> None:
    assert {"export", "report", "import"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"trunk": "scannet_vgg16", "weights": "imagenet"}, ["encoder scannet_vgg16: BSD-3-Clause"]),
        ({"trunk": "scannet_vgg16", "weights": "random"}, ["initialised at random"]),
        ({"encoders": ["resnet50", "inception_v3"], "weights": ["random", "imagenet"]},
         ["encoder inception_v3: BSD-3-Clause"]),
        ({"encoders": ["resnet50", "vgg16"], "weights": ["imagenet"]},
         ["encoder resnet50: BSD-3-Clause", "encoder vgg16: BSD-3-Clause"]),
        ({"encoder": "timm:vit_small"}, ["encoder timm:vit_small: Not recorded"]),
    ],
)  # fmt: skip
def test_licences_of_encoders(config: dict, expected: list[str], tmp_path: Path) -> None:
    bundle = Bundle("scannet", config, ("normal", "tumour"), 0.5)
    write_bundle(tmp_path / "b", bundle, texts={"x.txt": "x"})
    section = model_card(tmp_path / "b", licences=licences()).partition("## Licence")[2]
    lines = [line for line in section.splitlines() if "encoder" in line]
    assert len(lines) == len(expected)
    assert all(text in line for text, line in zip(expected, lines, strict=True)), lines
