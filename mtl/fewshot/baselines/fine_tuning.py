"""Baselines that take gradient steps per task, each with a cosine head that starts at the class means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtl.episode import READOUT, Episode, Examples, Inputs
from mtl.fewshot.baselines.methods import Method, in_chunks, one_by_one
from mtl.fewshot.baselines.readout_tuning import adam, tune_on_readout
from mtl.fewshot.baselines.setup import Setup
from mtl.fewshot.heads import Cosine
from mtl.fewshot.model import HEAD, at_least_float32, cross_entropy, head_weights
from mtl.metagrad import tensors
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone
from mtl.networks.backbones.prepared_inputs import examples_per_pass
from mtl.networks.modulation import Modulation

FIRST_STAGE = 0.6  # share of the steps that the two-stage method gives to its first stage

Features = Callable[[Tensors, Any], Tensor]
"""From weights and inputs, ``(tasks, n, width)``."""


def fine_tune(
    episode: Episode,
    start: Tensors,
    features: Features,
    lr: float,
    steps: int,
    *,
    head_steps: int = 0,
    prepare: Callable[[Inputs], Any] = lambda inputs: inputs,
) -> Tensor:
    """Logits of the queries, ``(tasks, m, ways)``, after Adam on the support set.

    Adam is element-wise, so a batch of tasks moves as each would alone.

    Args:
        start: weights to tune, together with a cosine head that starts at the class means.
        features: from weights and inputs, ``(tasks, n, width)``.
        lr: Adam's step size.
        steps: gradient steps.
        head_steps: steps of a fresh Adam on the head alone after these; the other weights stay as they then are.
        prepare: makes of the support inputs, once, what ``features`` reads of them in every step.
    """
    head, support, ways = Cosine(), episode.support, episode.ways
    with torch.no_grad():
        inputs = prepare(support.inputs)
        first = head.init(features(start, inputs), support.labels, ways)
    # Copies, which Adam changes in place.
    weights = tensors.leaf({k: v.clone() for k, v in (start | {HEAD + k: v for k, v in first.items()}).items()})

    def loss(seen: Tensor) -> Tensor:
        logits = head.support_logits(head_weights(weights), (seen, support.labels), ways)
        return cross_entropy(logits, support.labels).sum()

    _descend(weights.values(), lambda: loss(features(weights, inputs)), lr, steps)
    if head_steps:
        with torch.no_grad():
            seen = features(weights, inputs)
        _descend(head_weights(weights).values(), lambda: loss(seen), lr, head_steps)
    with torch.no_grad():
        asked = features(weights, episode.query.inputs)
        return head.logits(asked, head_weights(weights), (asked[:, :0], support.labels), ways)


def _descend(weights: Iterable[Tensor], loss: Callable[[], Tensor], lr: float, steps: int) -> None:
    """Steps of Adam on these weights alone."""
    optimizer = adam(list(weights), lr)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()


def head_only(setup: Setup, lr: float) -> Method:
    """The cosine head alone, on the last level (arXiv 1904.04232's Baseline++, per task)."""

    def logits(episode: Episode) -> Tensor:
        fixed = _on_features(episode, *setup.plain(episode))
        return tune_on_readout(fixed, lr, setup.steps, modulated=False)

    return setup.method(f"head only, {setup.steps} steps", logits, lambda ways: ways * setup.levels[-1])


def scale_and_shift(setup: Setup, lr: float) -> Method:
    """Scale and shift together with the head: what the generator amortises, at fifty times its passes."""
    return _ScaleAndShift(setup).method(f"scale/shift, {setup.steps} steps", lr, setup.steps, 0)


def scale_and_shift_then_head(setup: Setup, lr: float) -> Method:
    """Scale and shift together with the head first, then the head alone on what they give (2SFS, arXiv 2503.11609).

    The first stage has three fifths of the steps.
    """
    first = round(FIRST_STAGE * setup.steps)
    name = f"scale/shift then head, {setup.steps} steps"
    return _ScaleAndShift(setup).method(name, lr, first, setup.steps - first)


@dataclass(frozen=True)
class _ScaleAndShift:
    """Scale and shift of what a generator would modulate: the sites inside the network, and the channels of the readout
    where it has several levels or there are no sites. The readout is standardised first."""

    setup: Setup

    @property
    def sites(self) -> int:
        return self.setup.backbone.modulation_width

    @property
    def on_readout(self) -> bool:
        return len(self.setup.levels) > 1 or not self.sites

    @property
    def width(self) -> int:
        """Channels that get a scale and a shift."""
        return self.sites + (self.setup.backbone.width if self.on_readout else 0)

    def method(self, name: str, lr: float, steps: int, head_steps: int) -> Method:
        def on_readout(episode: Episode) -> Tensor:
            fixed = _on_features(episode, *self.setup.standardised(episode))
            return tune_on_readout(fixed, lr, steps, head_steps=head_steps)

        def inside(episode: Episode) -> Tensor:
            identity = Modulation.identity(episode.tasks, self.width, device=device_of(self.setup.backbone))
            start = {"scale": identity.scale, "shift": identity.shift}
            episode, features = episode.to(device_of(self.setup.backbone)), self._features(episode)
            prepare = self.setup.backbone.prepare  # what lies below the first site is the same in every step
            return fine_tune(episode, start, features, lr, steps, head_steps=head_steps, prepare=prepare)

        values = lambda ways: 2 * self.width + ways * self.setup.backbone.width  # noqa: E731
        return self.setup.method(name, in_chunks(inside, tasks_at_once) if self.sites else on_readout, values)

    def _features(self, episode: Episode) -> Features:
        """Features as a function of scale and shift, where there are sites."""
        backbone, sites = self.setup.backbone, self.sites
        standardise = self.setup.standardiser(self.setup.features(episode.support.inputs)) if self.on_readout else None

        def features(weights: Tensors, inputs: Any) -> Tensor:
            scale, shift = weights["scale"], weights["shift"]
            found = at_least_float32(backbone(inputs, Modulation(scale[:, :sites], shift[:, :sites])))
            if standardise is None:
                return found
            return _modulated(standardise(found), scale[:, sites:], shift[:, sites:])

        return features


def tasks_at_once(episode: Episode) -> int:
    """Tasks whose support sets pass through a network together while activations are kept for gradients."""
    inputs = episode[:1].support.inputs
    most = examples_per_pass(inputs)
    return episode.tasks if most is None else max(1, most // inputs.shape[1])


def _modulated(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return features * scale.unsqueeze(1) + shift.unsqueeze(1)


def whole_network(setup: Setup, lr: float) -> Method:
    """Every weight of the network, task by task, since tasks share nothing. On the last level.

    Raises:
        ValueError: when called with a backbone whose weights are not in one place, or on cached features.
    """
    backbone, last = setup.backbone, setup.last

    def features(weights: Tensors, inputs: Inputs) -> Tensor:
        # Adam moves a copy, which functional_call swaps in for one forward pass: the backbone stays as it is.
        model = {k: v for k, v in weights.items() if k.startswith("model.")}
        return torch.func.functional_call(backbone, model, (inputs,))[..., last].float()

    def logits(episode: Episode) -> Tensor:
        if backbone.placement is not None:
            raise ValueError(f"full fine-tuning of {backbone.name}: its weights are sharded or spread; leave it out")
        require_network_inputs("full fine-tuning", episode)
        start: Tensors = {f"model.{k}": v for k, v in backbone.model.named_parameters()}
        return fine_tune(episode.to(device_of(backbone)), start, features, lr, setup.steps)

    count = sum(p.numel() for p in backbone.model.parameters())
    values = lambda ways: count + ways * setup.levels[-1]  # noqa: E731
    return setup.method(f"full fine-tuning, {setup.steps} steps", one_by_one(logits), values)


def require_network_inputs(method: str, episode: Episode) -> None:
    """Refuse episodes of features that were computed before, for a method that changes the network below them.

    Raises:
        ValueError: the inputs are features.
    """
    if READOUT in episode.support.inputs:
        raise ValueError(f"{method} needs the images or tokens, but the inputs are cached features; leave it out")


def device_of(backbone: Backbone) -> torch.device:
    """Where the weights are."""
    return next(backbone.model.parameters()).device


def _on_features(episode: Episode, seen: Tensor, asked: Tensor) -> Episode:
    """The episode with features in place of inputs, on their device."""
    support, query = (Examples(x, e.labels.to(x.device)) for x, e in ((seen, episode.support), (asked, episode.query)))
    return replace(episode, support=support, query=query)
