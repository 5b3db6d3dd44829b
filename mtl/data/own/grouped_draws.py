"""Support and query from different groups: patients, authors, tracks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mtl.data.own.collection import AbstractCollection


def separable(collection: AbstractCollection, name: str, shots: int, queries: int) -> bool:
    """Whether a class has ``shots`` examples in some of its groups and ``queries`` in others."""
    members = collection.items[name]
    if not collection.groups:
        return len(members) >= shots + queries
    sums = 1  # bit n: some groups have n examples together
    for size in Counter(collection.groups[i] for i in members).values():
        sums |= sums << size
    return any(sums >> n & 1 for n in range(shots, len(members) - queries + 1))


def apart(
    rng: np.random.Generator, members: Sequence[Sequence[int]], groups: Mapping[int, str], shots: int, queries: int
) -> tuple[list[int], list[int]] | None:
    """Support and query positions by class, from groups that are on one side only; None when this draw finds none.

    Args:
        members: positions of the examples of each drawn class.
        groups: of each position.
    """
    in_support = _support_groups(rng, members, groups, shots, queries)
    support: list[int] = []
    query: list[int] = []
    for positions in members:
        first = [i for i in positions if groups[i] in in_support]
        second = [i for i in positions if groups[i] not in in_support]
        if len(first) < shots or len(second) < queries:
            return None
        support += [first[i] for i in rng.choice(len(first), shots, replace=False)]
        query += [second[i] for i in rng.choice(len(second), queries, replace=False)]
    return support, query


def _support_groups(
    rng: np.random.Generator, members: Sequence[Sequence[int]], groups: Mapping[int, str], shots: int, queries: int
) -> set[str]:
    """Groups for the support: in random order, each goes to the side that needs it more, or to either by chance."""
    sizes: dict[str, Counter[int]] = {}
    for c, positions in enumerate(members):
        for position in positions:
            sizes.setdefault(groups[position], Counter())[c] += 1
    missing = {True: [shots] * len(members), False: [queries] * len(members)}
    names, chosen = sorted(sizes), set[str]()
    for i in rng.permutation(len(names)):
        size = sizes[names[i]]
        use = {side: sum(min(n, need[c]) for c, n in size.items()) for side, need in missing.items()}
        first, second = use[True] / shots, use[False] / queries
        side = bool(rng.integers(2)) if first == second else first > second
        missing[side] = [max(0, need - size[c]) for c, need in enumerate(missing[side])]
        if side:
            chosen.add(names[i])
    return chosen
