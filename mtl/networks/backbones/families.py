"""Families of backbones: which library a name belongs to, and how its networks are loaded."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mtl.metagrad.registry import Registry
from mtl.networks.backbones.adapter import AbstractAdapter

FAMILIES = Registry("backbone family", "mtl.networks.FAMILIES")
"""Families by name. The one registered last is asked first whether a name is its own."""


class AbstractFamily(abc.ABC):
    """Networks of one library, loaded by name.

    For networks of your own, write one with names such as ``"mine/small"`` and register it, before a generator that was
    trained on one of them is loaded::

        @mtl.networks.FAMILIES.register("mine", help="Networks of my own.")
        class Mine(AbstractFamily): ...
    """

    loads_in_place: ClassVar[bool] = False
    """Whether ``load`` itself takes ``device_map``, ``offload_folder`` and ``quantization_config`` among ``args``."""

    saved_arguments: ClassVar[frozenset[str]] = frozenset()
    """Names among ``args`` that a saved generator may give, as numbers, words or lists of these. Name none whose values
    choose code to run; a generator with others loads with ``backbone=`` alone."""

    @abc.abstractmethod
    def matches(self, name: str) -> bool:
        """Whether this family has the network of that name."""

    @abc.abstractmethod
    def load(
        self, name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
    ) -> tuple[nn.Module, AbstractAdapter]:
        """A network without its classifier, and how to feed it.

        Args:
            name: as given to :func:`mtl.load_backbone`.
            pretrained: False asks for random weights, drawn from torch's global generator.
            checkpoint: a file with the weights.
            pooling: of positions; None is the family's default.
            args: the other arguments of :func:`mtl.load_backbone`; dtypes come by name.

        Raises:
            ValueError: a name, an argument or a checkpoint that does not fit.
            OSError: the weights are neither here nor reachable.
        """


def family_of(name: str) -> AbstractFamily:
    """The family that has the network of this name.

    Raises:
        ValueError: none has.
    """
    for family in reversed(FAMILIES.values()):
        if (candidate := family()).matches(name):
            return candidate
    raise ValueError(
        f"no family of backbones knows {name!r}; "
        f"register yours with {FAMILIES.name}.register({name.partition('/')[0]!r}, YourFamily)"
    )
