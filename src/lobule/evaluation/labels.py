"""Which labels are positive, and which scores answer them: found by rule, and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lobule.cohort.labels import plain, polarity
from lobule.errors import UsageError


@dataclass(frozen=True)
class Target:
    """One question: these labels against all others, answered by the sum of these scores."""

    name: str
    positive: frozenset[str]
    scores: tuple[str, ...]


@dataclass(frozen=True)
class TargetPlan:
    """The questions put to a cohort, and by which rule."""

    targets: tuple[Target, ...]
    rule: str
    classes: tuple[tuple[str, str], ...] = ()
    """(label, score) of every class, where each label has a score of its own."""


def plan_targets(
    labels: Sequence[str], scores: Sequence[str], positive: Sequence[str] = (), score: str | None = None
) -> TargetPlan:
    """The targets for a cohort's labels and a result's scores.

    Labels named positive stand against all others. Otherwise labels that each have a score of their own are
    judged one against the rest, unless there are two whose meaning is known; else the meaning decides.
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
        return _binary(labels, scores, chosen, score, "as asked")
    meanings = [polarity(label) for label in labels]
    class_scores = _scores_of_classes(labels, scores)
    if class_scores and score is None and not (len(labels) == 2 and set(meanings) == {True, False}):
        targets = tuple(Target(label, frozenset([label]), (name,)) for label, name in class_scores)
        rule = "each label has a score of its own: one against the rest"
        return TargetPlan(targets, rule, class_scores)
    if None in meanings:
        unclear = ", ".join(label for label, meaning in zip(labels, meanings, strict=True) if meaning is None)
        raise UsageError(
            f"it is not plain which labels are positive: {unclear}",
            actual=", ".join(labels),
            remedy="Say it with --positive LABEL",
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
    """Each label with its score; empty unless every label has one."""
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
        "it is not plain which score is to be judged",
        actual=", ".join(scores) or "no scores",
        remedy="Say it with --score NAME",
    )


def _join_labels(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"
