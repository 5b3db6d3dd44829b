"""A learner as a method, and controls that show whether it really adapts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Episode
from mtl.fewshot.baselines import Method
from mtl.fewshot.choosing import SETTINGS
from mtl.fewshot.evaluation.results import families_of
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.saving import inner_options
from mtl.metagrad.tensors import Tensors
from mtl.tools.comparison import Kind
from mtl.tools.identity import digest


def learner_method(
    learner: MetaLearner, name: str = "generator", steps: int | None = None, cross_validate: bool = False
) -> Method:
    """The learner as a method, by default with the inner steps that it was trained with.

    Args:
        cross_validate: see :meth:`MetaLearner.adapt`.
    """
    return _method(learner, name, "ours", None, steps, cross_validate)


def static_control(learner: MetaLearner, steps: int | None = None) -> Method:
    """A learner with a static generator: the control that conditioning has to beat."""
    return replace(learner_method(learner, "static modulation", steps), kind="control")


def controls(learner: MetaLearner, steps: int | None = None) -> list[Method]:
    """The same learner with its generator misled. The inner loop and the head always get the right support set.

    - another task's support: of a random other task of the chunk, of any family or of the same one. A task whose family
      has no second task in the chunk gets one of another family, so with many families or small chunks the two controls
      hardly differ (raise ``tasks_per_chunk``);
    - shuffled labels: the right examples with permuted labels, so that other examples share a class. With one example
      per class there is nothing to shuffle, and a generator that ignores the numbering of classes sees no difference;
    - identity: scale one and shift zero, with the step sizes that the generator emits.
    """
    emitters = {
        "another task's support": _emit_for_another_task,
        "another task's, same family": _emit_for_same_family,
        "shuffled labels": _emit_for_shuffled_labels,
        "identity": lambda learner, episode: learner.generator.identity(_emit(learner, episode)),
    }
    return [_method(learner, name, "control", emit, steps) for name, emit in emitters.items()]


Emit = Callable[[MetaLearner, Episode], Tensors]


def _method(
    learner: MetaLearner, name: str, kind: Kind, emit: Emit | None, steps: int | None, cross_validate: bool = False
) -> Method:
    """Adapt and predict; without ``emit``, from what the generator emits for the support set."""

    @torch.no_grad()
    def logits(episode: Episode) -> Tensor:
        episode = episode.to(learner.device)
        meta = None if emit is None else emit(learner, episode)
        adapted = learner.adapt(episode.support, steps=steps, meta=meta, cross_validate=cross_validate)
        found = adapted.logits(episode.query.inputs)
        if not cross_validate:
            return found
        temperatures = torch.tensor([c.temperature for c in adapted.calibrations], dtype=torch.float64)
        return found.double() / temperatures.to(found.device).view(-1, 1, 1)  # in float64, no two logits become one

    shown = learner.inner_steps if steps is None else steps
    name = f"{name}, {shown} step{'' if shown == 1 else 's'}"

    def identity() -> dict[str, Any]:
        return describe(learner) | {"cross_validate": cross_validate and dict(SETTINGS), "steps": shown}

    return Method.of_logits(name, logits, learner.model.adapted_values, kind=kind, identity=identity)


def describe(learner: MetaLearner) -> dict[str, Any]:
    """All that the answers of a learner depend on, with its weights."""
    generator = learner.generator
    return {
        "backbone": learner.backbone.identity(),
        "precision": str(learner.backbone.options.precision),
        "generator": type(generator).__name__,
        "options": generator.options,
        "weights": digest(dict(generator.state_dict())),
        "head": digest(learner.head),
        "optimizer": digest(type(learner.optimizer).__name__, inner_options(learner)),
    }


def _emit(learner: MetaLearner, episode: Episode) -> Tensors:
    return learner.generator(learner.view(episode.support, ways=episode.ways))


def _emit_for(learner: MetaLearner, episode: Episode, chosen: Tensor) -> Tensors:
    other = Episode(episode.support.map(lambda v: v[chosen.to(v.device)]), episode.query, episode.ways)
    return {k: v for k, v in _emit(learner, other).items() if k not in learner.generator.of_support}


def _emit_for_another_task(learner: MetaLearner, episode: Episode) -> Tensors:
    _require_two(episode)
    shift = torch.randint(1, episode.tasks, (episode.tasks,), generator=torch.Generator().manual_seed(episode.tasks))
    return _emit_for(learner, episode, (torch.arange(episode.tasks) + shift) % episode.tasks)


def _emit_for_same_family(learner: MetaLearner, episode: Episode) -> Tensors:
    _require_two(episode)
    families = families_of(episode)
    members = {f: [t for t, g in enumerate(families) if g == f] for f in dict.fromkeys(families)}
    following = {t: tasks[(i + 1) % len(tasks)] for tasks in members.values() for i, t in enumerate(tasks)}
    # A task that is alone of its family in the chunk gets its neighbour's support, never its own.
    following = {t: u if u != t else (t + 1) % episode.tasks for t, u in following.items()}
    return _emit_for(learner, episode, torch.tensor([following[t] for t in range(episode.tasks)]))


def _emit_for_shuffled_labels(learner: MetaLearner, episode: Episode) -> Tensors:
    view = learner.view(episode.support, ways=episode.ways)
    return learner.generator(replace(view, labels=_shuffle(episode.support.labels)))


def _shuffle(labels: Tensor, draws: int = 100) -> Tensor:
    """Labels ``(tasks, n)`` in another order, drawn again where the order only renumbers the classes."""
    before, shuffled = labels.unsqueeze(1) == labels.unsqueeze(2), labels
    for seed in range(draws):
        order = torch.randperm(labels.shape[1], generator=torch.Generator().manual_seed(seed)).to(labels.device)
        shuffled = labels[:, order]
        if ((shuffled.unsqueeze(1) == shuffled.unsqueeze(2)) != before).flatten(1).any(1).all():
            break
    return shuffled


def _require_two(episode: Episode) -> None:
    if episode.tasks < 2:
        raise ValueError("a chunk of one task holds no other task's support; raise tasks_per_chunk or episodes")
