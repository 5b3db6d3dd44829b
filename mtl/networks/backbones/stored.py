"""Recorded outputs of the frozen prefix, and how to take some of their examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


@dataclass(frozen=True)
class Stored:
    """Outputs of the prefix's calls for one batch of inputs; where nothing reads one later, only its shape.

    Args:
        outputs: one tree per call.
        rows: for every leaf of these trees, how many rows of its first axis belong to one example; 0 for what all
            examples share (position tables).
    """

    outputs: Sequence[Any]
    rows: Sequence[int]

    @property
    def bytes(self) -> int:
        """Memory of all outputs."""
        return sum(leaf.nbytes for leaf in tree_leaves(self.outputs) if isinstance(leaf, Tensor))

    def take(self, examples: Tensor) -> Stored:
        """Some examples only: ``examples`` are indices into the flat batch that was recorded."""
        return self._map(lambda leaf, rows: _take_rows(leaf, rows, examples) if rows else leaf)

    @staticmethod
    def join(pieces: Sequence[Stored], tasks: int) -> Stored:
        """Recordings of parts of every task's examples, put together in the order of the tasks."""
        leaves = zip(*(tree_leaves(p.outputs) for p in pieces), strict=True)
        whole = iter([_join_rows(parts, rows, tasks) for parts, rows in zip(leaves, pieces[0].rows, strict=True)])
        return pieces[0]._map(lambda leaf, rows: next(whole))

    def _map(self, f: Callable[[Any, int], Any]) -> Stored:
        leaves, spec = tree_flatten(self.outputs)
        return Stored(tree_unflatten([f(*pair) for pair in zip(leaves, self.rows, strict=True)], spec), self.rows)


@dataclass(frozen=True)
class Shape:
    """In place of an output that nothing reads.

    Args:
        size: of the output.
        like: empty, with its dtype and device.
    """

    size: torch.Size
    like: Tensor


AGAIN = object()
"""In place of the outputs of a call that is computed again in every replay."""


class NotByExample(Exception):
    """Some output of the prefix does not hold the examples along its first axis."""


def as_shape(x: Any) -> Any:
    """The shape of a tensor, anything else as it is."""
    return Shape(x.shape, x.new_empty(0)) if isinstance(x, Tensor) else x


def as_tensor(x: Any) -> Any:
    """A copy of a tensor, zeros of a shape, anything else as it is."""
    if isinstance(x, Shape):
        return x.like.new_zeros(x.size)
    return x.clone() if isinstance(x, Tensor) else x


def size_of(x: Any) -> torch.Size | None:
    """The size of a tensor or a shape."""
    return x.shape if isinstance(x, Tensor) else x.size if isinstance(x, Shape) else None


def rows_per_example(two: Any, three: Any) -> int:
    """How many rows of the first axis belong to one example, from recordings of two examples and of three.

    Raises:
        NotByExample: the number of examples shows on another axis.
    """
    of_two, of_three = (tuple(size_of(x) or ()) for x in (two, three))
    if of_two == of_three:
        return 0
    rows = of_two[0] // 2
    if (of_two, of_three) != ((2 * rows, *of_two[1:]), (3 * rows, *of_two[1:])):
        raise NotByExample
    return rows


def _take_rows(leaf: Any, rows: int, examples: Tensor) -> Any:
    if isinstance(leaf, Shape):
        return Shape(torch.Size([len(examples) * rows, *leaf.size[1:]]), leaf.like)
    return leaf.unflatten(0, (-1, rows))[examples.to(leaf.device)].flatten(0, 1)


def _join_rows(parts: Sequence[Any], rows: int, tasks: int) -> Any:
    first = parts[0]
    if not rows:
        return first
    if isinstance(first, Shape):
        return Shape(torch.Size([sum(p.size[0] for p in parts), *first.size[1:]]), first.like)
    return torch.cat([p.unflatten(0, (tasks, -1)) for p in parts], 1).flatten(0, 1)
