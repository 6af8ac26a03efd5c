"""The comparison: its rows one after the other, and the table after every row."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lobule.cohort import Cohort
from lobule.comparison.entries import Encoder, Entry, plan_entries
from lobule.comparison.labels import check_minutes
from lobule.comparison.page import write_page
from lobule.comparison.rows import COMPLETE, FAILED, Common, Row
from lobule.comparison.table import JSON, measures_of, table_data, write_table
from lobule.errors import ConfigError, LobuleError, ResultsError, UsageError
from lobule.files import make_folder, read_json, write_json
from lobule.settings import checked_options

log = logging.getLogger("lobule.compare")

PLAN = "compare.json"


@dataclass(frozen=True, eq=False)
class Comparison:
    """The table of a comparison."""

    out: Path
    data: Mapping[str, Any]
    """The content of `table.json`."""

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        rows: Sequence[Mapping[str, Any]] = self.data["rows"]
        return rows

    @property
    def failed(self) -> int:
        """Number of rows that failed."""
        return sum(row["status"] == FAILED for row in self.rows)


@checked_options
def compare(
    cohort: Cohort | str | Path,
    out: str | Path,
    methods: Sequence[str],
    *,
    encoders: Sequence[str] = (),
    weights: str | Sequence[str] = "pretrained",
    budgets: Sequence[int] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    minutes: Mapping[str, float] | None = None,
    reference: str | None = None,
    split: str = "test",
    val: str | None = "val",
    seed: int = 0,
    resamples: int = 2000,
    mpp: float = 0.5,
    tile: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    workers: int | None = None,
    on_row: Callable[[str], None] | None = None,
) -> Comparison:
    """Train, scan and evaluate methods and encoders on one cohort, and write one table.

    Writes `table.json`, `table.csv` and `index.html` to `out`, after every row. Each row has a folder with
    its bundle and results. A repeated call continues an interrupted comparison; a call with further methods,
    encoders or budgets adds their rows to the table.

    Args:
        cohort: The cases, or the path of their manifest.
        out: Folder of the comparison.
        methods: The methods and presets to compare.
        encoders: Encoders for the methods that have a choice: `probe`, `reverse_distillation`, `rakhlin` and
            all that learn from features of tiles.
        weights: "pretrained", "random", or a file; one for all encoders or one for each.
        budgets: Numbers of labelled training cases; by default all are used.
        settings: Changed settings by method.
        minutes: Minutes of annotation per label, by kind of label; see `MINUTES`.
        reference: The row from which differences are computed; by default the first complete one.
        split: The split on which rows are compared. It is not used for training.
        val: The split for validation during trainings; None for none.
        seed: Seed of trainings and of the choice of cases for budgets.
        resamples: Number of bootstrap resamples for the intervals.
        mpp: µm/px of the tiles of features.
        tile: Width of these tiles in pixels; by default that of the encoder.
        device: "auto", "cpu", "mps", "cuda:0", or several cards such as "cuda:0,cuda:2".
        precision: Precision of trainings and scans.
        workers: Workers that sample patches; by default one per core.
        on_row: Receives the name of each row before it starts.

    Returns:
        The table.

    Raises:
        UsageError: The cohort has no case in `split`, or an entry is named twice.
        ResultsError: `out` contains a comparison of other cases or with other options.
    """
    from lobule.cohort import as_cohort
    from lobule.results.locks import lock_folder

    cases = as_cohort(cohort)
    if not cases.split(split):
        raise UsageError(f"no case is in the split '{split}', on which methods are compared")
    entries = plan_entries(methods, _encoders(encoders, weights), budgets, settings or {})
    common = Common(
        cases, split, val, seed, resamples, mpp, tile, check_minutes(minutes or {}),
        {"device": device, "precision": precision, "workers": workers},
        {"device": device, "precision": precision},
    )  # fmt: skip
    root = make_folder(out)
    with lock_folder(root):
        planned = _merge_plan(root, common, entries)
        return _run(root, common, planned, reference, on_row or (lambda name: None))


def _encoders(names: Sequence[str], weights: str | Sequence[str]) -> list[Encoder]:
    sources = [weights] if isinstance(weights, str) else list(weights)
    if len(sources) == 1:
        sources *= len(names)
    if len(sources) != len(names):
        raise ConfigError(
            f"{len(sources)} weights for {len(names)} encoders", expected="one for all, or one for each"
        )
    return [Encoder(name, str(source)) for name, source in zip(names, sources, strict=True)]


def _merge_plan(root: Path, common: Common, entries: Sequence[Entry]) -> list[Entry]:
    """The entries of earlier calls and then the new ones; the plan is stored.

    Raises:
        ResultsError: Earlier calls had other cases or options, or an entry with other settings.
    """
    path = root / PLAN
    identity = json.loads(json.dumps(common.identity()))
    earlier: list[Entry] = []
    if path.exists():
        stored = read_json(path)
        for name, value in identity.items():
            if stored["common"].get(name) != value:
                raise ResultsError(
                    f"this folder contains a comparison with other {name}",
                    subject=root,
                    expected=str(stored["common"].get(name))[:200],
                    actual=str(value)[:200],
                    remedy="Write the comparison to another folder",
                )
        earlier = [Entry.from_dict(one) for one in stored["entries"]]
    merged = {entry.name: entry for entry in earlier}
    for entry in entries:
        merged.setdefault(entry.name, entry)
        # An entry that failed before it began may be repeated with other settings.
        if merged[entry.name] != entry and not (root / "rows" / entry.name).exists():
            merged[entry.name] = entry
        if json.dumps(merged[entry.name].to_dict(), default=str) != json.dumps(entry.to_dict(), default=str):
            raise ResultsError(
                f"the row '{entry.name}' was made with other settings",
                subject=root,
                expected=str(dict(merged[entry.name].settings)),
                actual=str(dict(entry.settings)),
                remedy="Write the comparison to another folder",
            )
    plan = {"common": identity, "entries": [entry.to_dict() for entry in merged.values()]}
    write_json(path, json.loads(json.dumps(plan, default=str)))
    return list(merged.values())


def _run(
    root: Path,
    common: Common,
    entries: Sequence[Entry],
    reference: str | None,
    on_row: Callable[[str], None],
) -> Comparison:
    """Run every row, then evaluate all of them, and write the table after each row."""
    if reference is not None and reference not in {entry.name for entry in entries}:
        raise UsageError(
            f"there is no row '{reference}'", expected=f"one of {', '.join(entry.name for entry in entries)}"
        )
    rows = [Row(entry, common, root) for entry in entries]
    outcomes: dict[str, dict[str, Any]] = {}
    comparison = None
    for row in rows:
        on_row(row.entry.name)
        outcomes[row.entry.name] = row.run()
        comparison = _tabulate(root, common, rows, outcomes, reference)
    assert comparison is not None, "there is at least one entry"
    return comparison


def _tabulate(
    root: Path,
    common: Common,
    rows: Sequence[Row],
    outcomes: Mapping[str, dict[str, Any]],
    reference: str | None,
) -> Comparison:
    """Evaluate the rows that are complete so far and write the table."""
    finished = [row for row in rows if row.entry.name in outcomes]
    complete = [row for row in finished if outcomes[row.entry.name]["status"] == COMPLETE]
    base = next((row for row in complete if reference in (None, row.entry.name)), None)
    table_rows = []
    for row in finished:
        entry = {**row.base(), **outcomes[row.entry.name], "seconds": row.seconds()}
        if row in complete:
            entry |= _measured(row, None if row is base else base)
        table_rows.append(entry)
    data = table_data(table_rows, _head(common), None if base is None else base.entry.name)
    write_table(data, root)
    data = read_json(root / JSON)
    write_page(data, root)
    return Comparison(root, data)


def _measured(row: Row, base: Row | None) -> dict[str, Any]:
    """The measures of a row; an evaluation that fails is the row's failure, not that of the table."""
    try:
        return measures_of(row.evaluate(base))
    except LobuleError as error:
        log.warning("%s cannot be evaluated: %s", row.entry.name, error)
        return {"status": FAILED, "reason": f"evaluating: {error}"}


def _head(common: Common) -> dict[str, Any]:
    """What the table says about the cohort."""
    evaluated = common.cohort.split(common.split)
    counts = Counter(case.split or "no split" for case in common.cohort)
    return {
        "cohort": common.cohort.path,
        "split": common.split,
        "counts": dict(sorted(counts.items())),
        "sites": sorted({case.site or "not stated" for case in evaluated}),
        "minutes": dict(common.minutes),
    }
