"""The frozen prefix: what a network computes before the first modulated site, done once and replayed.

Nothing below the first site depends on fast weights or meta-parameters, so for one batch of inputs it is the same in
every inner step, every pull and every evaluation. With sites in the last blocks only, that is most of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from mtl.metagrad import tensors
from mtl.networks.backbones.patching import Forward, replaced

Wrap = Callable[[int, Forward], Forward]


@dataclass(frozen=True)
class Stored:
    """Outputs of the prefix's calls for one batch of inputs; those that nothing after them reads are mere shapes.

    Args:
        outputs: one tree per call.
        rows: for every leaf of these trees, how many rows of its first axis belong to one example; 0 for what all
            examples share (position tables).
    """

    outputs: Sequence[Any]
    rows: Sequence[int]

    def take(self, examples: Tensor) -> Stored:
        """Some examples only: ``examples`` are indices into the flat batch that was recorded."""
        return self._map(lambda leaf, rows: _take(leaf, rows, examples) if rows else leaf)

    @staticmethod
    def join(pieces: Sequence[Stored], tasks: int) -> Stored:
        """Recordings of parts of every task's examples, put together in the order of the tasks."""
        leaves = zip(*(tree_leaves(p.outputs) for p in pieces), strict=True)
        whole = iter([_join(parts, rows, tasks) for parts, rows in zip(leaves, pieces[0].rows, strict=True)])
        return pieces[0]._map(lambda leaf, rows: next(whole))

    def _map(self, f: Callable[[Any, int], Any]) -> Stored:
        leaves, spec = tree_flatten(self.outputs)
        return Stored(tree_unflatten([f(*pair) for pair in zip(leaves, self.rows, strict=True)], spec), self.rows)


class FrozenPrefix:
    """Finds the module calls that end before the first site, records what they return, and replays it.

    A call is known by its module and its turn. Of the calls in the prefix only the outermost count, and of their
    outputs only those are kept that something outside the prefix reads; the others are replaced by zeros of their
    shape. The modules' own ``forward`` is replaced while a recording or a replay lasts, and put back after.

    Args:
        model: left as it was found.
        sites: names of the modulated layers.
        forward: runs the model on so many example inputs and returns features.
        unbroken: let a recording run to its end; sharded networks keep count of their layers' calls.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[str], forward: Callable[[int], Tensor], unbroken: bool = False
    ) -> None:
        self._forward, self._unbroken = forward, unbroken
        self._calls = _outermost_frozen(model, set(sites), lambda: forward(2))
        self._needed = self._read_later(lambda: forward(2)) if self._calls else set()
        self._rows: Sequence[int] = ()
        if self._needed:
            three = tree_leaves(self.record(lambda: forward(3)).outputs)
            self._rows = [_rows_of_one(*pair) for pair in zip(tree_leaves(self._pattern.outputs), three, strict=True)]

    def __len__(self) -> int:
        return len(self._needed)

    @torch.no_grad()
    def record(self, forward: Callable[[], Any]) -> Stored:
        """What the prefix returns while ``forward`` runs, which is broken off once all of it is known."""
        outputs: list[Any] = [None] * len(self._calls)

        def recording(i: int, original: Forward) -> Forward:
            def call(*args: Any, **kwargs: Any) -> Any:
                found = original(*args, **kwargs)
                # Cloned: what follows may work in place.
                outputs[i] = tree_map(_clone if i in self._needed else _shape, found)
                if i == last and not self._unbroken:
                    raise _Done
                return found

            return call

        last = len(self._calls) - 1
        try:
            with self._replaced(recording):
                forward()
        except _Done:
            pass
        return Stored(outputs, self._rows)

    @cached_property
    def by_token(self) -> bool:
        """Whether all outputs are ``(n, length, width)``.

        Such a prefix can be cut into its texts and put together again, in other company and with other padding.
        """
        found = [_size(x) for x in tree_flatten(self._pattern.outputs)[0] if x is not None]
        sizes = [size for size in found if size is not None and len(size) == 3]
        # A first axis of one is an output that all texts share, such as position embeddings.
        return len(sizes) == len(found) and len({size[:2] for size in sizes}) == 1 and sizes[0][0] > 1

    def per_token(self, stored: Stored) -> Tensor:
        """What is read later, in one tensor ``(n, length, width)``; of a prefix :attr:`by_token`."""
        return torch.cat([x for x in tree_flatten(stored.outputs)[0] if isinstance(x, Tensor)], -1)

    def restored(self, rows: Tensor) -> Stored:
        """The inverse of :meth:`per_token`."""
        leaves, spec = tree_flatten(self._pattern.outputs)
        kept = iter(rows.split([x.shape[-1] for x in leaves if isinstance(x, Tensor)], -1))
        shapes = [
            _Shape(rows.shape[:2] + x.size[2:], rows.new_empty(0)) if isinstance(x, _Shape) else x for x in leaves
        ]
        outputs = tree_unflatten([next(kept) if isinstance(x, Tensor) else x for x in shapes], spec)
        return Stored(outputs, self._rows)

    @cached_property
    def _pattern(self) -> Stored:
        return self.record(lambda: self._forward(2))

    @contextmanager
    def replaying(self, stored: Stored) -> Iterator[None]:
        """Forwards inside take the prefix from ``stored``."""
        replay: Wrap = lambda i, original: lambda *args, **kwargs: tree_map(_fresh, stored.outputs[i])  # noqa: E731
        with self._replaced(replay):
            yield

    @contextmanager
    def _replaced(self, wrap: Wrap) -> Iterator[None]:
        """Give every module of the prefix a forward that goes through its calls in turn."""
        turns: dict[nn.Module, list[int]] = {}
        for i, module in enumerate(self._calls):
            turns.setdefault(module, []).append(i)
        forwards = {module: _in_turn([wrap(i, module.forward) for i in indices]) for module, indices in turns.items()}
        with replaced(forwards):
            yield

    def _read_later(self, forward: Callable[[], Tensor]) -> set[int]:
        """The calls whose outputs the rest of the network reads: cut the graph after each, and see what is reached."""
        leaves: dict[str, Tensor] = {}
        opaque: set[int] = set()  # what cannot be cut (integers, masks) is kept

        def cutting(i: int, original: Forward) -> Forward:
            def cut(x: Any) -> Any:
                if x is None:
                    return x
                if not isinstance(x, Tensor) or not x.is_floating_point():
                    opaque.add(i)
                    return x
                leaf = leaves[f"{i} {len(leaves)}"] = x.detach().requires_grad_()
                return leaf.clone()

            return lambda *args, **kwargs: tree_map(cut, original(*args, **kwargs))

        with torch.enable_grad(), self._replaced(cutting):
            features = forward()
        return opaque | {int(name.split()[0]) for name in tensors.reaches([features], leaves)}


class _Done(Exception):
    """The prefix is known; the rest of the forward pass is not needed."""


def _in_turn(calls: Sequence[Forward]) -> Forward:
    remaining = iter(calls)
    if len(calls) == 1:
        return calls[0]
    return lambda *args, **kwargs: next(remaining)(*args, **kwargs)


def _outermost_frozen(model: nn.Module, sites: set[str], forward: Callable[[], Any]) -> list[nn.Module]:
    """The modules of the outermost calls that end before any site begins, call by call in order."""
    names = {module: name for name, module in model.named_modules()}
    stack: list[nn.Module] = []
    ended: list[tuple[nn.Module, int, bool]] = []  # module, depth, whether it ended before any site
    begun = False

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal begun
        begun = begun or names[module] in sites
        stack.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()
        ended.append((module, len(stack), not begun))

    handles = [h for m in names for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    late = {module for module, _, frozen in ended if not frozen}
    outermost: list[nn.Module] = []
    depth = None  # of the frozen call that the calls before it may belong to; calls end after those inside them
    for module, level, frozen in reversed(ended):
        if depth is not None and level > depth:
            continue
        depth = None
        if frozen and module not in late:
            outermost.append(module)
            depth = level
    return outermost[::-1]


def _clone(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x


def _rows_of_one(two: Any, three: Any) -> int:
    """How many rows of the first axis belong to one example, from recordings of two examples and of three.

    Raises:
        NotByExample: the number of examples shows on another axis.
    """
    of_two, of_three = (tuple(_size(x) or ()) for x in (two, three))
    if of_two == of_three:
        return 0
    rows = of_two[0] // 2
    if (of_two, of_three) != ((2 * rows, *of_two[1:]), (3 * rows, *of_two[1:])):
        raise NotByExample
    return rows


class NotByExample(Exception):
    """Some output of the prefix does not hold the examples along its first axis."""


def _take(leaf: Any, rows: int, examples: Tensor) -> Any:
    if isinstance(leaf, _Shape):
        return _Shape(torch.Size([len(examples) * rows, *leaf.size[1:]]), leaf.like)
    return leaf.unflatten(0, (-1, rows))[examples.to(leaf.device)].flatten(0, 1)


def _join(parts: Sequence[Any], rows: int, tasks: int) -> Any:
    first = parts[0]
    if not rows:
        return first
    if isinstance(first, _Shape):
        return _Shape(torch.Size([sum(p.size[0] for p in parts), *first.size[1:]]), first.like)
    return torch.cat([p.unflatten(0, (tasks, -1)) for p in parts], 1).flatten(0, 1)


@dataclass(frozen=True)
class _Shape:
    size: torch.Size
    like: Tensor  # empty; carries dtype and device


def _shape(x: Any) -> Any:
    return _Shape(x.shape, x.new_empty(0)) if isinstance(x, Tensor) else x


def _size(x: Any) -> torch.Size | None:
    return x.shape if isinstance(x, Tensor) else x.size if isinstance(x, _Shape) else None


def _fresh(x: Any) -> Any:
    if isinstance(x, _Shape):
        return x.like.new_zeros(x.size)
    return x.clone() if isinstance(x, Tensor) else x
