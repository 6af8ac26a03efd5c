"""Altered LightGBM texts: each is refused or gives finite probabilities; none ends the process."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import lightgbm
import numpy as np

from lobule.errors import BundleError
from lobule.methods.rakhlin.trees import BoostedTrees
from tests.faults.limited import run_limited

TEXTS = 600
NUMBERS = (
    "0",
    "-1",
    "1",
    "2147483647",
    "-2147483648",
    "99999999999999999999",
    "nan",
    "inf",
    "1e308",
    "",
    "x",
)


def test_altered_texts_never_end_the_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(120, 4)), rng.integers(0, 3, 120)
    parameters = {
        "objective": "multiclass",
        "num_class": 3,
        "verbosity": -1,
        "num_leaves": 6,
        "num_threads": 1,
    }
    booster = lightgbm.train(parameters, lightgbm.Dataset(rows, labels), 4)
    (tmp_path / "model.txt").write_text(booster.model_to_string())
    outcomes = run_limited("tests.faults.test_hostile_forests:try_texts", str(tmp_path / "model.txt"))
    assert sum(outcomes.values()) == TEXTS
    assert set(outcomes) == {"refused", "predicted"}
    assert outcomes["refused"] > TEXTS / 4


def try_texts(path: str) -> dict[str, int]:
    """Read and use many altered copies of a model; what happened, counted."""
    text = Path(path).read_text()
    rows = np.random.default_rng(1).normal(size=(20, 4))
    return dict(Counter(_outcome(altered(text, seed), rows) for seed in range(TEXTS)))


def _outcome(text: str, rows: np.ndarray) -> str:
    try:
        trees = BoostedTrees.of_text(text, "model.txt")
        probabilities = trees.predict(rows)
    except BundleError as error:
        assert "model.txt" in str(error) or "descriptors" in str(error)
        return "refused"
    assert np.isfinite(probabilities).all() and np.allclose(probabilities.sum(axis=1), 1)
    # LightGBM, too, survives what is written from the checked numbers
    lightgbm.Booster(model_str=trees.to_text()).predict(rows, pred_contrib=True, num_threads=1)
    return "predicted"


def altered(text: str, seed: int) -> str:
    """A copy with one number, line or byte changed."""
    draw = random.Random(seed)
    end = text.index("end of trees")
    lines = text[:end].split("\n")
    kind = draw.choice(["number", "number", "number", "line", "byte", "cut", "repeat"])
    if kind == "number":
        index = draw.choice([i for i, line in enumerate(lines) if "=" in line])
        key, _, value = lines[index].partition("=")
        words = value.split(" ")
        words[draw.randrange(len(words))] = draw.choice(NUMBERS)
        lines[index] = f"{key}={' '.join(words)}"
    elif kind == "line":
        del lines[draw.randrange(len(lines))]
    elif kind == "repeat":
        index = draw.randrange(len(lines))
        lines[index : index + 1] = [lines[index]] * draw.choice([2, 1000])
    elif kind == "byte":
        position = draw.randrange(end)
        return text[:position] + chr(draw.randrange(1, 127)) + text[position + 1 :]
    else:
        return text[: draw.randrange(end)]
    return "\n".join(lines) + text[end:]
