"""Applies a function to many cases: in this process, or elsewhere by another implementation of `CaseMap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class CaseMap(Protocol):
    """Applies a function to every item and returns the results in the order of the items.

    Functions and items may be sent to other processes and machines, so both must support pickling.
    """

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        done: Callable[[T], None] | None = None,
        if_lost: Callable[[T, int], R] | None = None,
    ) -> list[R]:
        """Apply a function.

        Args:
            function: What is applied to each item.
            items: The items.
            done: Called in this process with each item that is done.
            if_lost: Returns the result of an item whose process died, from the item and the number of
                deaths. Without it, such an item is an error.
        """
        ...


def map_here(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    done: Callable[[T], None] | None = None,
    if_lost: Callable[[T, int], R] | None = None,
) -> list[R]:
    """Apply a function in this process, one item after the other. See `CaseMap`."""
    results = []
    for item in items:
        results.append(function(item))
        if done is not None:
            done(item)
    return results
