"""Which network a backbone is, and how to get it again: the part of a backbone that saving and caching ask."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn

from mtl.episode import Inputs, RawInputs
from mtl.networks.backbones.adapter import AbstractAdapter
from mtl.networks.backbones.identity import (
    WeightHashes,
    cache_key,
    describe_features,
    former_fingerprint,
    hash_of_inputs,
    json_arguments,
    sample,
)
from mtl.networks.backbones.options import ForwardOptions, Placement
from mtl.networks.modulation import Site
from mtl.networks.readout import Level


class AbstractRecognisable(nn.Module, abc.ABC):
    """A network that can be told from every other one. The attributes are those of :class:`Backbone`."""

    model: nn.Module
    adapter: AbstractAdapter
    name: str
    load_args: dict[str, Any] | None
    options: ForwardOptions
    placement: Placement | None
    sites: tuple[Site, ...]
    levels: tuple[Level, ...]
    width: int
    modulation_width: int

    def __init__(self) -> None:
        super().__init__()
        self._hashes: WeightHashes | None = None
        self._frozen_answers: dict[str, Any] | None = None

    @abc.abstractmethod
    def features(self, inputs: Inputs | RawInputs, model: nn.Module | None = None) -> Tensor:
        """Features ``(n, D)`` of inputs without a task axis."""

    @abc.abstractmethod
    def example_inputs(self, n: int) -> Inputs:
        """``n`` examples, the same ones every time."""

    @property
    def _weights(self) -> WeightHashes:
        if self._hashes is None:
            self._hashes = WeightHashes(self.model)
        return self._hashes

    def fingerprint(self) -> str:
        """A hash of every parameter and buffer as it is stored: names, shapes, dtypes and values.

        The same on every device, and for weights that are spread or sharded. Hashing takes a second per GB; asking
        again takes a tenth of that, and notices weights that were changed in place.
        """
        return self._weights.everything()

    def former_fingerprint(self) -> str:
        """The fingerprint that version 0.1.0 saved with a generator."""
        return former_fingerprint(self.model)

    def freeze_fingerprint(self) -> None:
        """Remember the hashes of the weights, before these go where their values cannot be read."""
        self._weights.freeze()
        self._frozen_answers = self.answers()

    def identity(self) -> dict[str, Any]:
        """JSON-able: what features depend on, so that backbones of the same identity make the same features.

        Returns:
            ``fingerprint``; ``weights``, hashes of the checkpoint by dtype; ``width`` and ``modulation_width``;
            ``features``: dtype, pooling, most tokens, names of sites and levels; ``preprocessing``: size, mean,
            deviation, crop and interpolation of images, or what the tokenizer does; None where there is none.
        """
        return {
            "width": self.width,
            "modulation_width": self.modulation_width,
            "fingerprint": self.fingerprint(),
            "weights": self._weights.by_dtype(),
            **describe_features(self.model, self.adapter, [site.name for site in self.sites], self.levels),
        }

    @torch.no_grad()
    def answers(self) -> dict[str, Any]:
        """Some features of two examples, which show what no weight does: activations, numbers of heads, rotations.

        Returns:
            ``example``, a hash of the examples; ``features``, 64 numbers of 5 digits of the plain network as it is
            stored. They differ in the last digits from machine to machine.
        """
        if self._frozen_answers is not None:
            return self._frozen_answers
        examples = self.example_inputs(2)
        found = self.features(examples) if self.placement else self.features(examples, self.model)
        return {"example": hash_of_inputs(Inputs.of(self.adapter.example(2))), "features": sample(found)}

    def cache_key(self) -> str:
        """A hash of weights, arguments of loading, preprocessing and precision, for :class:`mtl.data.InputCache`.

        Raises:
            ValueError: see :meth:`spec`; or nothing is there to preprocess with.
        """
        preprocessing = sorted(self.adapter.preprocessing().items())
        described = {"load": json_arguments(self.name, self.load_args), **self.identity()}
        return cache_key(described, preprocessing, self.options.precision)

    def spec(self) -> dict[str, Any]:
        """JSON-able: ``load_backbone(**spec["load"])`` builds this backbone again.

        Returns:
            ``load``, what :meth:`identity` says, and :meth:`answers`.

        Raises:
            ValueError: built without :func:`load_backbone`, or with an argument that JSON cannot hold.
        """
        load = json_arguments(self.name, self.load_args)
        return {"load": load, **self.identity(), "answers": self.answers()}
