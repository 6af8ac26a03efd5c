"""The table of models: their measures, intervals and differences, as an evaluation states them."""

from __future__ import annotations

import re

from lobule.reports.comparison import comparison_table


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return {"value": value, "low": low, "high": high}


def data(froc: float, auc: float, *, against: bool = False) -> dict:
    lesions = {
        "all": {
            "froc_score": estimate(froc, 0.1, 0.9),
            "froc": {"sensitivity_at": {"0.25": froc / 2, "8": froc}},
        }
    }
    task = {"all": {"auroc": estimate(auc)}}
    if against:
        lesions["against"] = {"all": {"froc": {"difference": estimate(0.25, 0.05, 0.45)}}}
        task["against"] = {"all": {"auroc": {"difference": estimate(-0.125)}}}
    return {"tasks": {"tumour": task}, "lesions": lesions}


def rows_of(html: str) -> list[list[str]]:
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in cells]


def test_models_and_their_difference() -> None:
    html = comparison_table(
        {"net <a>": data(0.75, 0.875, against=True), "colour": data(0.5, 1.0)},
        difference=data(0.75, 0.875, against=True), colours={"colour": "red"},
    )  # fmt: skip
    assert rows_of(html) == [
        ["model", "FROC", "at 0.25", "at 0.5", "at 1", "at 2", "at 4", "at 8", "AUC of tumour"],
        ["net &lt;a&gt;", "0.75 0.10 to 0.90", "0.38", "–", "–", "–", "–", "0.75", "0.88"],
        ["colour", "0.50 0.10 to 0.90", "0.25", "–", "–", "–", "–", "0.50", "1.00"],
        ["difference", "0.25 0.05 to 0.45", "", "", "", "", "", "", "-0.12"],
    ]
    assert html.count("class=dot") == 1


def test_models_without_lesions_have_only_areas() -> None:
    plain = {"tasks": {"left": {"all": {"auroc": estimate(0.5)}}}, "lesions": None}
    other = {"tasks": {"right": {"all": {"auroc": estimate(None)}}}, "lesions": None}
    rows = rows_of(comparison_table({"a": plain, "b": other}, difference=plain))
    assert rows[0] == ["model", "AUC of left", "AUC of right"]
    assert rows[1:] == [["a", "0.50", "–"], ["b", "–", "–"], ["difference", "–", "–"]]
