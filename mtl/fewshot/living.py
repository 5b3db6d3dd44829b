"""Changing what a task was adapted to: more examples, a new class, or fewer of them, without starting over.

What the network has made of an example is kept, so that only new examples pass through it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs
from mtl.fewshot.moments import Moments
from mtl.fewshot.raw_items import labelled
from mtl.networks.backbones import Backbone, Prepared
from mtl.tools.hints import did_you_mean

KEPT_BYTES = 2**26  # of a frozen prefix; a larger one is computed again when examples change


@dataclass(frozen=True, eq=False)
class Support:
    """Labelled examples to adapt to, with what is known of them.

    Args:
        names: of the classes of a single task, in the order of its labels; empty where they are numbered.
        examples: of one task or several; where nothing inside the network is modulated, their features are enough.
        prepared: the same with their frozen prefix, where it is known.
        background: unlabelled examples, by which features are standardised beside the labelled ones of each task; None
            where that is left to the generator.
    """

    names: tuple[Any, ...]
    examples: Examples
    prepared: Prepared | None = None
    background: Moments | None = None

    @property
    def classes(self) -> tuple[Any, ...]:
        """Names of the classes, or their numbers."""
        return self.names or tuple(range(int(self.examples.labels.max()) + 1))


@dataclass(frozen=True, eq=False)
class Recipe:
    """How tasks were adapted, to adapt to changed examples in the same way.

    Args:
        adapt: gives an adapted task.
        prepared: frozen prefix of the examples, where it is worth keeping; copies compute it again.
        background: see :class:`Support`.
    """

    adapt: Callable[[Support], Any]
    prepared: Prepared | None = None
    background: Moments | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"prepared": None}

    def of_task(self, task: int) -> Recipe:
        """The same for one task of a batch."""
        if self.prepared is None:
            return self
        _, n = self.prepared.shape
        return replace(self, prepared=self.prepared.regroup(torch.arange(task * n, (task + 1) * n)[None]))


class AbstractLiving(abc.ABC):
    """An adapted task whose examples can be changed; each change gives a new one, and the old one stays as it is."""

    @abc.abstractmethod
    def _support(self) -> Support:
        """What it was adapted to, of one task.

        Raises:
            ValueError: that is not known, or there are several tasks.
        """

    @abc.abstractmethod
    def _again(self, support: Support) -> Self:
        """Adapted to these in the same way."""

    @abc.abstractmethod
    def _backbone(self) -> Backbone: ...

    @property
    def examples(self) -> dict[Any, int]:
        """How many examples each class has.

        Raises:
            ValueError: there are several tasks, or the examples were not kept.
        """
        support = self._support()
        counts = support.examples.labels[0].bincount().tolist()
        return dict(zip(support.classes, counts, strict=True))

    @torch.inference_mode(False)
    @torch.no_grad()
    def add(self, examples: Any) -> Self:
        """The task with more examples of its classes, or with new classes, which come last.

        >>> adapted = adapted.add({"scratch": more_scratches, "stain": stains})  # doctest: +SKIP

        Only these pass through the network. The result is that of adapting anew to all examples, up to rounding:
        statistics, cross-validation and inner steps included.

        Args:
            examples: items by class name, a folder with one sub-folder per class, or a collection; of one class or
                more. Where classes are numbered, the numbers are the names.

        Raises:
            ValueError: something is no such item, a class is empty, or there are several tasks.
        """
        return self._again(added(self._backbone(), self._support(), examples))

    @torch.inference_mode(False)
    @torch.no_grad()
    def drop(self, name: Any, examples: int | Iterable[int] | None = None) -> Self:
        """The task without a class, or without some examples of it.

        >>> adapted.drop("scratch"), adapted.drop("dent", [2, -1])  # doctest: +SKIP

        Nothing passes through the network, but for layers that are modulated. The other classes keep their order.

        Args:
            name: of the class.
            examples: which of its examples, by their places in the order in which they were given, from 0, or from -1
                backwards; None is the whole class.

        Raises:
            ValueError: there is no such class or example, or nothing would be left of the class, or fewer than two
                classes of the task.
        """
        return self._again(dropped(self._support(), name, examples))


def read_support(backbone: Backbone, items: Any, least: int = 2) -> Support:
    """Images or texts by class; their features alone where nothing inside the network is modulated.

    Args:
        items, least: see :func:`~mtl.fewshot.raw_items.labelled`; what was read already is returned.

    Raises:
        ValueError: see there.
    """
    if isinstance(items, Support):
        return items
    return Support(*labelled(backbone, items, partial(kept_inputs, backbone), least))


def kept_inputs(backbone: Backbone, inputs: Inputs) -> Inputs:
    """Features in place of inputs ``(1, n, ...)``, where nothing inside the network is modulated."""
    return inputs if backbone.sites else backbone.prepare(inputs).inputs


def added(backbone: Backbone, support: Support, items: Any) -> Support:
    """The support set of one task and more examples of it; see :meth:`AbstractLiving.add`."""
    more = read_support(backbone, items, least=1)
    classes = list(support.classes)
    for name in more.names:
        if name not in classes:
            if not support.names and name != len(classes):
                numbers = f"0 to {len(classes) - 1}, and a new one is {len(classes)}"
                raise ValueError(f"class {name!r}: this task was adapted to numbered classes, {numbers}")
            classes.append(name)
    places = torch.tensor([classes.index(name) for name in more.names])
    labels = torch.cat([support.examples.labels.cpu(), places[more.examples.labels]], 1)
    order = labels[0].argsort(stable=True)  # as if all had been given at once
    inputs = (support.examples.inputs, more.examples.inputs.to(support.examples.labels.device))
    old, new = Inputs.pad(inputs)
    joined = Examples(Inputs.cat([old, new], 1).take(order, 1), labels[:, order])
    known = _joined(backbone, support.prepared, old, new)
    names = tuple(classes) if support.names else ()
    return replace(support, names=names, examples=joined, prepared=known and known.take(order))


def _joined(backbone: Backbone, known: Prepared | None, old: Inputs, new: Inputs) -> Prepared | None:
    """The frozen prefix of both; None where it is not known, or texts grew longer with the new ones."""
    if known is None or known.stored is None or any(t.shape != known.inputs[k].shape for k, t in old.tensors.items()):
        return None
    found = backbone.prepare(new)
    return None if found.stored is None else Prepared.join([known, found])


def dropped(support: Support, name: Any, examples: int | Iterable[int] | None = None) -> Support:
    """The support set of one task without a class or some of its examples; see :meth:`AbstractLiving.drop`."""
    classes, labels = support.classes, support.examples.labels.cpu()
    if name not in classes:
        raise ValueError(f"there is no class {name!r}; {_nearest(name, classes)}")
    members = (labels[0] == classes.index(name)).nonzero().flatten()
    if examples is None:
        if len(classes) < 3:
            raise ValueError(f"without {name!r} there would be {len(classes) - 1} class; a task needs at least two")
        gone, left = members, tuple(c for c in classes if c != name)
    else:
        gone, left = members[_places(name, examples, len(members))], classes
        if len(gone.unique()) == len(members):
            way_out = f"drop the class with drop({name!r})" if len(classes) > 2 else "add others first"
            raise ValueError(f"class {name!r} would be left without an example; {way_out}")
    keep = torch.tensor([i for i in range(labels.shape[1]) if i not in set(gone.tolist())])
    numbers = torch.tensor([left.index(c) if c in left else -1 for c in classes])
    remaining = Examples(support.examples.inputs.take(keep, 1), numbers[labels[:, keep]])
    prepared = None if support.prepared is None else support.prepared.take(keep)
    return replace(support, names=left if support.names else (), examples=remaining, prepared=prepared)


def _places(name: Any, examples: int | Iterable[int], count: int) -> Tensor:
    places = [examples] if isinstance(examples, int) else list(examples)
    for place in places:
        if not isinstance(place, int) or not -count <= place < count:
            raise ValueError(f"class {name!r} has no example {place!r}; it has {count}, 0 to {count - 1}")
    return torch.tensor(places, dtype=torch.long)


def _nearest(name: Any, classes: Sequence[Any]) -> str:
    """A hint for a name that is not there."""
    if meant := did_you_mean(name, classes, 3, cutoff=0.4, show=repr):
        return meant
    more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
    return f"there are {', '.join(map(repr, classes[:8]))}{more}"


def kept(backbone: Backbone, prepared: Prepared) -> Prepared | None:
    """A frozen prefix that is worth its memory until examples change."""
    stored = prepared.stored if backbone.sites else None
    return prepared if stored is not None and stored.bytes <= KEPT_BYTES else None
