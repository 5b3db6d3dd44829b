"""The frozen prefix: what a network computes before the first modulated site, done once and replayed.

Nothing below the first site depends on fast weights or meta-parameters, so for one batch of inputs it is the same in
every inner step, every pull and every evaluation. With sites in the last blocks only, that is most of the network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mtl.metagrad import tensors
from mtl.networks.backbones.adapter import noise
from mtl.networks.backbones.patching import Forward, forward_of, patch_forwards
from mtl.networks.backbones.stored import AGAIN, NotByExample, Stored, as_shape, as_tensor, rows_per_example
from mtl.networks.modulation import FirstSite, Hook, Modulation, Modulator, watching
from mtl.networks.readout import Readout

log = logging.getLogger(__name__)

Wrap = Callable[[int, Forward], Forward]


def find_prefix(
    name: str,
    modulator: Modulator,
    features: Callable[[int], Tensor],
    device: torch.device,
    unbroken: bool,
    readout: Readout | None = None,
) -> FrozenPrefix | None:
    """The prefix of a network, found by watching one forward pass and checked on another; None where there is none.

    Args:
        name: of the network, for the log.
        features: runs the network on so many example inputs, the same ones every time.
        device: where inputs go.
        unbroken: see :class:`FrozenPrefix`.
        readout: see :class:`FrozenPrefix`.
    """
    try:
        prefix = FrozenPrefix(modulator, features, unbroken, readout)
    except NotByExample:
        log.warning("%s: its frozen prefix mixes examples; it is computed every time", name)
        return None
    with torch.no_grad(), modulator.modulating(probe(modulator.width, device)):
        plain = features(2)
        with prefix.replaying(prefix.record(lambda: features(2))):
            replayed = features(2)
    tolerance = 1e-3 * float(plain.abs().max()) if tensors.has_values(plain) else 0.0
    if not tensors.has_values(plain) or torch.allclose(plain, replayed, rtol=1e-3, atol=tolerance):
        return prefix
    log.warning("%s: replaying its frozen prefix changes the features; it is computed every time", name)
    return None


def probe(width: int, device: torch.device) -> Modulation:
    """A modulation of one task that changes something at every site."""
    random = noise(1, width).to(device)
    return Modulation(1 + 0.1 * random, 0.1 * random)


class FrozenPrefix:
    """Finds the module calls that end before the first site, records what they return, and replays it.

    A call is identified by its module and its turn. Of the calls in the prefix only the outermost count, and of their
    outputs only those are kept that something outside the prefix reads; the others become zeros of their shape. The
    modules' own ``forward`` is patched while a recording or a replay lasts, for the calls of that thread.

    Args:
        modulator: of the sites; its model is left unchanged.
        forward: runs the model on so many example inputs and returns features.
        unbroken: let every recording run to its end, because sharded networks count the calls of their layers.
        readout: of the model, whose levels below the first site are recorded and replayed too.

    Attributes:
        pattern: the outputs for two examples.
    """

    def __init__(
        self,
        modulator: Modulator,
        forward: Callable[[int], Tensor],
        unbroken: bool = False,
        readout: Readout | None = None,
    ) -> None:
        self._unbroken = unbroken
        self._readout = readout if readout is not None and readout.frozen else None
        self._modulator = modulator
        sites = {s.name for s in modulator.sites}
        self._calls = _outermost_frozen(modulator.model, sites, lambda: forward(2))
        self._needed = self._read_later(lambda: forward(2)) if self._calls else set()
        self._rows: Sequence[int] = ()
        self.pattern = Stored([], ())
        if self._needed:
            two, three = (self.record(lambda n=n: forward(n)).outputs for n in (2, 3))
            self._rows = [rows_per_example(*pair) for pair in zip(tree_leaves(two), tree_leaves(three), strict=True)]
            self.pattern = Stored(two, self._rows)

    def __len__(self) -> int:
        return len(self._needed)

    @property
    def has_levels(self) -> bool:
        """Whether levels of a readout are recorded, last."""
        return self._readout is not None

    @torch.no_grad()
    def record(self, forward: Callable[[], Any]) -> Stored:
        """Outputs of the prefix while ``forward`` runs, which is stopped at the first site.

        The levels of the readout that end before it come last, ``(n, width)``.
        """
        outputs: list[Any] = [None] * len(self._calls)

        def recording(i: int, original: Forward) -> Forward:
            def call(*args: Any, **kwargs: Any) -> Any:
                found = original(*args, **kwargs)
                # Cloned: what follows may work in place.
                outputs[i] = tree_map(_clone if i in self._needed else as_shape, found)
                return found

            return call

        found: list[Tensor] = []
        levels = nullcontext() if self._readout is None else self._readout.recording(found)
        stop = nullcontext() if self._unbroken else self._modulator.stopping()
        with suppress(FirstSite), levels, stop, self._patched(recording):
            forward()
        return Stored([*outputs, *found], self._rows)

    @contextmanager
    def replaying(self, stored: Stored) -> Iterator[None]:
        """Forwards inside take the prefix from ``stored``."""

        def replay(i: int, original: Forward) -> Forward:
            if any(leaf is AGAIN for leaf in tree_leaves(stored.outputs[i])):
                return original
            return lambda *args, **kwargs: tree_map(as_tensor, stored.outputs[i])

        levels = nullcontext() if self._readout is None else self._readout.replaying(stored.outputs[-1])
        with levels, self._patched(replay):
            yield

    @contextmanager
    def _patched(self, wrap: Wrap) -> Iterator[None]:
        """Give every module of the prefix a forward that goes through its calls in turn."""
        turns: dict[nn.Module, list[int]] = {}
        for i, module in enumerate(self._calls):
            turns.setdefault(module, []).append(i)
        forwards = {
            module: _in_turn([wrap(i, forward_of(module)) for i in indices]) for module, indices in turns.items()
        }
        with patch_forwards(forwards):
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

        # The readout reads the prefix while it is recorded, and not later.
        given = nullcontext() if self._readout is None else self._readout.without_frozen()
        with given, torch.enable_grad(), self._patched(cutting):
            features = forward()
        return opaque | {int(name.split()[0]) for name in tensors.reaches([features], leaves)}


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

    hooks = [hook for m in names for hook in (Hook(m, enter, before=True), Hook(m, leave))]
    with watching(hooks), torch.no_grad():
        forward()
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
