"""Boosted trees in a checked form: read from LightGBM's text, predicted with numpy.

LightGBM trusts the text of a model: altered counts or children end the process or never return. Here every
number is checked before it is used, and LightGBM is handed only text that was written from checked numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lobule.errors import BundleError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LARGEST_TEXT = 64 << 20
MOST_LEAVES = 1 << 17
"""LightGBM's own limit on the leaves of a tree."""
MOST_NODES = 1 << 22
MOST_DEPTH = 4096
MOST_FEATURES = 10_000_000
MOST_CLASSES = 10_000
CELLS_AT_ONCE = 1 << 20
"""Rows times trees that are walked together, so that memory stays flat."""

CATEGORICAL, DEFAULT_LEFT = 1, 2
MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2
ZERO = 1e-35
"""LightGBM takes values so close to zero as zero."""


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """A multiclass model: trees one after another in common arrays, the classes of a round side by side.

    A leaf leads to itself, so that all rows can be walked down all trees in step.
    """

    classes: int
    features: int
    roots: Integers
    feature: Integers
    threshold: Floats
    decision: Integers
    """Bits as in LightGBM's text: 2 sends missing values left; the higher bits say what counts as missing."""
    left: Integers
    right: Integers
    value: Floats
    """What a leaf adds to the score of its tree's class."""
    count: Integers
    """Training rows at each node."""
    depth: int

    def predict(self, rows: NDArray[Any]) -> Floats:
        """(rows, classes) probabilities of (rows, features)."""
        values = np.asarray(rows)
        if values.ndim != 2 or values.shape[1] != self.features:
            raise BundleError(
                "the model's trees do not fit the descriptors",
                expected=f"{self.features} numbers a row",
                actual=f"an array of shape {values.shape}",
            )
        out = np.empty((len(values), self.classes))
        step = max(1, CELLS_AT_ONCE // len(self.roots))
        for start in range(0, len(values), step):
            out[start : start + step] = softmax(self._scores(values[start : start + step]), axis=1)
        return out

    def _scores(self, values: NDArray[Any]) -> Floats:
        row = np.arange(len(values))[:, None]
        node = np.tile(self.roots, (len(values), 1))
        plain = not np.isnan(values).any() and not (self.decision >> 2 == MISSING_ZERO).any()
        for _ in range(self.depth):
            value = values[row, self.feature[node]]
            goes_left = value <= self.threshold[node] if plain else self._goes_left(value, node)
            node = np.where(goes_left, self.left[node], self.right[node])
        scores: Floats = self.value[node].reshape(len(values), -1, self.classes).sum(axis=1)
        return scores

    def _goes_left(self, value: NDArray[Any], node: Integers) -> NDArray[np.bool_]:
        """LightGBM's rule where values may be missing."""
        decision = self.decision[node]
        missing_kind, is_nan = decision >> 2, np.isnan(value)
        value = np.where(is_nan & (missing_kind != MISSING_NAN), 0, value)
        missing = np.where(
            missing_kind == MISSING_NAN, is_nan, (missing_kind == MISSING_ZERO) & (abs(value) <= ZERO)
        )
        return np.where(missing, (decision & DEFAULT_LEFT) > 0, value <= self.threshold[node])

    # -- text -----------------------------------------------------------------------------------------------

    @classmethod
    def of_text(cls, text: str, subject: object = None) -> BoostedTrees:
        """Read the text of a multiclass LightGBM model, and check all of it that predictions depend on."""
        try:
            return _read(text)
        except (ValueError, KeyError, OverflowError, IndexError) as error:
            problem = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)[:300]
            raise BundleError(
                "this is not a complete LightGBM model",
                subject=subject,
                actual=problem,
                remedy="Copy the bundle again from its source",
            ) from error

    def to_text(self) -> str:
        """Text that LightGBM reads, written from the checked numbers alone."""
        lines = [
            "tree", "version=v4", f"num_class={self.classes}", f"num_tree_per_iteration={self.classes}",
            "label_index=0", f"max_feature_idx={self.features - 1}",
            f"objective=multiclass num_class:{self.classes}",
            "feature_names=" + " ".join(f"Column_{index}" for index in range(self.features)),
            "feature_infos=" + " ".join(["[-1e300:1e300]"] * self.features), "",
        ]  # fmt: skip
        ends = [*self.roots[1:].tolist(), len(self.feature)]
        for number, (root, end) in enumerate(zip(self.roots.tolist(), ends, strict=True)):
            lines += [f"Tree={number}", *self._tree_lines(root, end), "", ""]
        return "\n".join([*lines, "end of trees", "", "parameters:", "end of parameters", ""])

    def _tree_lines(self, root: int, end: int) -> Iterator[str]:
        inner = (end - root) // 2
        nodes, leaves = slice(root, root + inner), slice(root + inner, end)

        def child(nodes_below: Integers) -> Integers:
            local = nodes_below - root
            return np.where(local < inner, local, inner - 1 - local)

        yield f"num_leaves={inner + 1}"
        yield "num_cat=0"
        arrays: dict[str, NDArray[Any]] = {
            "split_feature": self.feature[nodes],
            "split_gain": np.zeros(inner, np.int64),
            "threshold": self.threshold[nodes],
            "decision_type": self.decision[nodes],
            "left_child": child(self.left[nodes]),
            "right_child": child(self.right[nodes]),
            "leaf_value": self.value[leaves],
            "leaf_weight": self.count[leaves],
            "leaf_count": self.count[leaves],
            "internal_value": np.zeros(inner, np.int64),
            "internal_weight": self.count[nodes],
            "internal_count": self.count[nodes],
        }
        for name, numbers in arrays.items():
            yield f"{name}=" + " ".join(map(repr, numbers.tolist()))
        yield "is_linear=0"
        yield "shrinkage=1"


# -- reading and checking -----------------------------------------------------------------------------------


def _read(text: str) -> BoostedTrees:
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"{len(text)} characters, more than {LARGEST_TEXT}")
    if "\nend of trees" not in text:
        raise ValueError("it ends before its trees do")
    body = text[: text.index("\nend of trees")].split("\n")
    starts = [index for index, line in enumerate(body) if line.startswith("Tree=")]
    header = _fields(body[: starts[0]] if starts else body, ("tree", ""))
    if body[0] != "tree" or header["version"] not in ("v3", "v4"):
        raise ValueError("it is not a model of version v3 or v4")
    classes = _integer(header["num_class"], 2, MOST_CLASSES)
    features = _integer(header["max_feature_idx"], 0, MOST_FEATURES - 1) + 1
    if header["objective"] != f"multiclass num_class:{classes}":
        raise ValueError(f"its objective is '{header['objective'][:60]}', not that of {classes} classes")
    if _integer(header["num_tree_per_iteration"], 1, MOST_CLASSES) != classes:
        raise ValueError("the number of trees per round differs from the number of classes")
    if not starts or len(starts) % classes:
        raise ValueError(f"{len(starts)} trees are not whole rounds of {classes}")
    trees = []
    for number, (start, end) in enumerate(pairwise([*starts, len(body)])):
        if body[start] != f"Tree={number}":
            raise ValueError(f"tree {number} is missing")
        trees.append(_fields(body[start + 1 : end], ("",)))
    return _joined(trees, classes, features)


def _fields(lines: Sequence[str], without_value: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        if line in without_value:
            continue
        key, equals, value = line.partition("=")
        if not equals or key in fields:
            raise ValueError(f"the line '{line[:60]}' is repeated or of an unknown kind")
        fields[key] = value
    return fields


def _joined(trees: Sequence[Mapping[str, str]], classes: int, features: int) -> BoostedTrees:
    """All trees in common arrays, once every number of them is checked."""
    leaves = np.array([_leaves(tree) for tree in trees])
    inner = leaves - 1
    if leaves.sum() + inner.sum() > MOST_NODES:
        raise ValueError(f"its trees have more than {MOST_NODES} nodes")
    roots = np.cumsum([0, *(leaves + inner)[:-1].tolist()])
    decision = _integers(trees, "decision_type", inner, 0, 4 * MISSING_NAN + 3)
    if (decision & CATEGORICAL).any():
        raise ValueError("categorical splits are not supported")
    is_leaf = _ranges(roots + inner, leaves)
    is_inner = _ranges(roots, inner)
    arrays: dict[str, NDArray[Any]] = {}
    below = {}
    for side in ("left", "right"):
        child = _integers(trees, f"{side}_child", inner, -MOST_LEAVES, MOST_LEAVES)
        root = np.repeat(roots, inner)
        below[side] = root + np.where(child >= 0, child, np.repeat(inner, inner) - 1 - child)
        arrays[side] = np.arange(len(is_inner) + len(is_leaf))
        arrays[side][is_inner] = below[side]
    depth = _depth(roots, leaves + inner, is_inner, below["left"], below["right"])
    spread = (
        ("feature", _integers(trees, "split_feature", inner, 0, features - 1), is_inner),
        ("threshold", _numbers(trees, "threshold", inner, infinite=True), is_inner),
        ("decision", decision, is_inner),
        ("value", _numbers(trees, "leaf_value", leaves), is_leaf),
    )
    for name, numbers, nodes in spread:
        arrays[name] = np.zeros(len(is_inner) + len(is_leaf), numbers.dtype)
        arrays[name][nodes] = numbers
    return BoostedTrees(
        classes, features, roots, depth=depth, count=_counts(trees, inner, is_inner, is_leaf), **arrays
    )


def _leaves(tree: Mapping[str, str]) -> int:
    if int(tree.get("num_cat", "0")) or int(tree.get("is_linear", "0")):
        raise ValueError("categorical splits and linear trees are not supported")
    return _integer(tree["num_leaves"], 1, MOST_LEAVES)


def _counts(
    trees: Sequence[Mapping[str, str]], inner: Integers, is_inner: Integers, is_leaf: Integers
) -> Integers:
    count = np.ones(len(is_inner) + len(is_leaf), np.int64)
    count[is_inner] = _integers(trees, "internal_count", inner, 1, 2**31 - 1)
    split = [tree for tree, nodes in zip(trees, inner, strict=True) if nodes]  # a lone leaf has no count
    in_split = np.repeat(inner > 0, inner + 1)
    count[is_leaf[in_split]] = _integers(split, "leaf_count", inner[inner > 0] + 1, 1, 2**31 - 1)
    return count


def _ranges(starts: Integers, lengths: Integers) -> Integers:
    """The numbers from each start on, as many as its length, one range after another."""
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths), np.int64)


def _depth(roots: Integers, sizes: Integers, nodes: Integers, left: Integers, right: Integers) -> int:
    """Steps from the roots to the deepest leaf; nodes that do not form whole trees are refused."""
    children = np.concatenate([left, right])
    end = np.repeat(roots + sizes, (sizes - 1) // 2)
    if (children <= np.tile(nodes, 2)).any() or (children >= np.tile(end, 2)).any():
        raise ValueError("a node comes before its parent, or is of another tree")
    total = int(sizes.sum())
    if not np.array_equal(np.sort(children), np.setdiff1d(np.arange(total), roots)):
        raise ValueError("a node has several parents, or none")
    below = np.full((2, total), -1)
    below[0, nodes], below[1, nodes] = left, right
    level, depth = roots, 0
    while len(level := below[:, level].ravel()[below[:, level].ravel() >= 0]):
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"a tree is more than {MOST_DEPTH} steps deep")
    return depth


def _integer(text: str, least: int, most: int) -> int:
    if len(text) > 20 or not least <= (number := int(text)) <= most:
        raise ValueError(f"'{text[:40]}' is not a number from {least} to {most}")
    return number


def _words(trees: Sequence[Mapping[str, str]], name: str, counts: Integers) -> list[str]:
    """The numbers of a field of all trees, still as text; each tree must have its count of them."""
    lines = [
        tree.get(name, "") if not count else tree[name] for tree, count in zip(trees, counts, strict=True)
    ]
    words: list[str] = []
    for number, (line, count) in enumerate(zip(lines, counts.tolist(), strict=True)):
        # counted first: splitting a line of millions of numbers takes gigabytes
        of_tree = line.split() if line.count(" ") <= count else []
        if len(of_tree) != count:
            raise ValueError(f"{name} of tree {number} does not have {count} numbers")
        words += of_tree
    return words


def _integers(
    trees: Sequence[Mapping[str, str]], name: str, counts: Integers, least: int, most: int
) -> Integers:
    words = _words(trees, name, counts)
    if max(map(len, words), default=0) > 20:
        raise ValueError(f"{name} has a number of more than 20 digits")
    numbers = np.array(list(map(int, words)), np.int64)
    if len(numbers) and not least <= numbers.min() <= numbers.max() <= most:
        raise ValueError(f"{name} has numbers outside {least} to {most}")
    return numbers


def _numbers(
    trees: Sequence[Mapping[str, str]], name: str, counts: Integers, *, infinite: bool = False
) -> Floats:
    """Numbers without NaN; an infinite threshold separates missing values from all others."""
    numbers = np.array(list(map(float, _words(trees, name, counts))), np.float64)
    if np.isnan(numbers).any() or (not infinite and np.isinf(numbers).any()):
        raise ValueError(f"{name} has numbers that are not finite")
    return numbers
