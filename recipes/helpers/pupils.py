"""Networks that learn one channel-wise rule together: generators with shared weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import mtl
from helpers.readouts import Network


@dataclass(frozen=True)
class Pupil:
    """A network on one data set, with learners whose generator has the weights that all share.

    Args:
        learner: standardises by statistics of the data set.
        by_support: the same, but standardises each task by its own support set.
    """

    network: Network
    learner: mtl.MetaLearner
    by_support: mtl.MetaLearner

    @staticmethod
    def of(network: Network, hidden: int, shared: nn.Module | None = None) -> Pupil:
        def learner(standard: str, shared: nn.Module | None) -> mtl.MetaLearner:
            options: dict[str, Any] = {"per_channel": False, "hidden": hidden, "standard": standard}
            generator = mtl.fewshot.make_generator("channelwise", network.backbone, **options)
            if shared is not None:
                share_parameters(shared, generator)
            return mtl.MetaLearner(network.backbone, generator)

        fixed = learner("fixed", shared)
        fixed.generator.standardise(network.statistics)
        return Pupil(network, fixed, learner("support", fixed.generator))


def share_parameters(source: nn.Module, target: nn.Module) -> None:
    """Make the parameters of ``target`` those of ``source``, not copies of them; buffers stay apart."""
    shared = dict(source.named_parameters())
    for name, own in list(target.named_parameters()):
        if shared[name].shape != own.shape:
            raise ValueError(f"{name} has the shape {tuple(own.shape)}, not {tuple(shared[name].shape)}")
        module, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(module), leaf, shared[name])


Pupils = Mapping[str, Sequence[Pupil]]
"""By network: one for each data set."""


def pupils_of(networks: Mapping[str, Network], hidden: int) -> dict[str, list[Pupil]]:
    """All of them share the weights of the first."""
    found: dict[str, list[Pupil]] = {}
    for name, network in networks.items():
        for part in network.by_data_set().values():
            shared = first_of(found).learner.generator if found else None
            found.setdefault(name, []).append(Pupil.of(part, hidden, shared))
    return found


def first_of(pupils: Pupils) -> Pupil:
    return next(iter(pupils.values()))[0]


def tasks_of(pupil: Pupil, part: str, shots: int, queries: int, seed: int = 0) -> mtl.data.FamilyTasks | None:
    """Tasks of a data set, or None where it has no family of enough examples."""
    try:
        return pupil.network.tasks(part, shots, queries, seed) if pupil.network.divided.parts[part] else None
    except ValueError:
        return None
