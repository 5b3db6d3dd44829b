"""The one interface of all kinds of networks, and what its implementations share."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtl.episode import RawInputs
from mtl.items import Reads
from mtl.networks.readout import Positions


class AbstractAdapter(abc.ABC):
    """How to call a network, how to pool its output, and how raw items become its tensors.

    An adapter deals in plain tensors, or in dicts of tensors by name. The inputs of :meth:`features` have the form that
    its own :meth:`example` and :meth:`preprocess` return.
    """

    reads: ClassVar[Reads] = "items"
    """``"images"`` or ``"texts"``, which :func:`mtl.items.as_items` then looks for in what people give."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # at once: another thread may be adding what it has found

    @abc.abstractmethod
    def features(self, model: nn.Module, inputs: Any) -> Tensor:
        """Features ``(n, D)`` of ``n`` examples: a tensor ``(n, ...)``, or tensors by name, each ``(n, ...)``."""

    @abc.abstractmethod
    def example(self, n: int) -> RawInputs:
        """``n`` different random examples, the same ones every time."""

    @abc.abstractmethod
    def preprocess(self, items: Sequence[Any]) -> RawInputs:
        """Tensors ``(n, ...)`` of ``n`` raw items, the way the network was trained to see them.

        :func:`mtl.items.as_images` and :func:`mtl.items.as_texts` make images and strings of whatever people have.
        """

    def positions(self, model: nn.Module) -> Positions:
        """What the token positions of the network mean; for a network of maps, the default."""
        del model
        return Positions()

    def reading(self, model: nn.Module) -> Mapping[str, Any]:
        """How :meth:`features` reads the network's output, as JSON holds it: its pooling, the most tokens it takes."""
        del model
        return {}

    def former_pooling(self, model: nn.Module, pooling: str | None) -> str | None:
        """The pooling that the argument ``pooling`` stood for in version 0.1.0; None where that has not changed."""
        del model, pooling
        return None

    def preprocessing(self) -> Mapping[str, Any]:
        """What :meth:`preprocess` depends on, beside the arguments of :func:`mtl.load_backbone`."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What tells this preprocessing from others, as JSON gives it back; see :class:`mtl.episode.Identified`."""
        try:
            preprocessing = dict(self.preprocessing())
        except ValueError:  # nothing is there to preprocess with
            preprocessing = None
        return json.loads(json.dumps({"kind": type(self).__name__, "preprocessing": preprocessing}, default=str))


def check_pooling(pooling: str, known: tuple[str, ...]) -> None:
    """Refuse a pooling that there is not.

    Raises:
        ValueError: naming those that there are.
    """
    if pooling not in known:
        raise ValueError(f"pooling={pooling!r}: expected one of {', '.join(known)}")


def noise(*shape: int) -> Tensor:
    """Standard normal values, the same ones every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
