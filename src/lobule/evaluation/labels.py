"""Decide by rules which labels are positive and which scores predict them; the report states the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lobule.cohort.labels import plain, polarity
from lobule.errors import UsageError


@dataclass(frozen=True)
class Target:
    """The positive labels of one task, and the scores whose sum predicts them."""

    name: str
    positive: frozenset[str]
    scores: tuple[str, ...]


@dataclass(frozen=True)
class TargetPlan:
    """The targets of an evaluation, and the rule by which they were chosen."""

    targets: tuple[Target, ...]
    rule: str
    classes: tuple[tuple[str, str], ...] = ()
    """The label and the score name of every class, if every label has its own score."""


def plan_targets(
    labels: Sequence[str], scores: Sequence[str], positive: Sequence[str] = (), score: str | None = None
) -> TargetPlan:
    """Choose the targets for the labels of a cohort and the scores of its results.

    The first rule that applies is used:

    1. The labels in `positive` are evaluated against all others.
    2. If every label has its own score, each label is evaluated against the rest. This rule does not apply
       to one positive and one negative label, such as normal and tumor.
    3. The usual meaning of the labels decides which are positive.

    Args:
        labels: The labels of the cohort.
        scores: The names of the scores.
        positive: Labels that count as positive.
        score: The score to evaluate.

    Raises:
        UsageError: A requested label or score does not exist, or the rules give no answer.
    """
    if score is not None and score not in scores:
        raise UsageError(f"the results have no score '{score}'", actual=", ".join(scores) or "no scores")
    if positive:
        if unknown := [label for label in positive if plain(label) not in set(map(plain, labels))]:
            raise UsageError(
                f"no case has the label {', '.join(unknown)}", actual=", ".join(labels) or "no labels"
            )
        positive_words = set(map(plain, positive))
        chosen = frozenset(label for label in labels if plain(label) in positive_words)
        return _binary(labels, scores, chosen, score, "as requested")
    meanings = [polarity(label) for label in labels]
    class_scores = _scores_of_classes(labels, scores)
    if class_scores and score is None and not (len(labels) == 2 and set(meanings) == {True, False}):
        targets = tuple(Target(label, frozenset([label]), (name,)) for label, name in class_scores)
        rule = "every label has its own score: each label against the rest"
        return TargetPlan(targets, rule, class_scores)
    if None in meanings:
        unclear = ", ".join(label for label, meaning in zip(labels, meanings, strict=True) if meaning is None)
        raise UsageError(
            f"cannot tell whether these labels are positive or negative: {unclear}",
            actual=", ".join(labels),
            remedy="Name the positive labels with --positive LABEL",
        )
    chosen = frozenset(label for label, meaning in zip(labels, meanings, strict=True) if meaning)
    return _binary(labels, scores, chosen, score, "by their usual meaning")


def _binary(
    labels: Sequence[str], scores: Sequence[str], positive: frozenset[str], score: str | None, reason: str
) -> TargetPlan:
    negative = [label for label in labels if label not in positive]
    rule = f"{reason}: positive {_join_labels(sorted(positive))}, negative {_join_labels(negative)}"
    target_scores = (score,) if score is not None else _scores_of_positive(scores, positive)
    name = next(iter(positive)) if len(positive) == 1 else "positive"
    return TargetPlan((Target("positive" if plain(name) == "1" else name, positive, target_scores),), rule)


def _scores_of_classes(labels: Sequence[str], scores: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each label with the name of its score; empty unless every label has one."""
    by_word = {plain(name): name for name in scores}
    pairs = tuple((label, by_word[plain(label)]) for label in labels if plain(label) in by_word)
    return pairs if len(labels) > 1 and len(pairs) == len(labels) else ()


def _scores_of_positive(scores: Sequence[str], positive: frozenset[str]) -> tuple[str, ...]:
    if len(scores) == 1:
        return (scores[0],)
    positive_words = set(map(plain, positive))
    named = tuple(name for name in scores if plain(name) in positive_words)
    if named and len(named) == len(positive_words):
        return named
    positive_by_meaning = tuple(name for name in scores if polarity(name))
    if len(positive_by_meaning) == 1:
        return positive_by_meaning
    raise UsageError(
        "cannot tell which score to evaluate",
        actual=", ".join(scores) or "no scores",
        remedy="Name the score with --score NAME",
    )


def _join_labels(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"
