r"""Meta-transfer as an :class:`~mtl.metagrad.InnerProblem`: learn the weights of a matching loss.

From the target's weights :math:`\theta_0`, take K steps on the matching loss and one on the classification loss,

.. math::

    \theta_{k+1} = \theta_k - \alpha \nabla_\theta L_{match}(\theta_k, \phi; B_k), \quad
    \theta_{K+1} = \theta_K - \alpha \nabla_\theta L_{cls}(\theta_K; B_{cls}), \qquad
    \min_\phi L_{cls}(\theta_{K+1}; B_{outer}),

so :math:`\phi`, the weights of :class:`~mtl.transfer.MatchingWeights`, acts inside the inner loss only (type L). Its
hypergradient is zero for estimators that drop second derivatives, and for those that use the last step only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mtl.metagrad.functional import Functional
from mtl.metagrad.optimizers import AbstractInnerOptimizer
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.storage import OnDevice, StateStorage
from mtl.metagrad.tensors import Tensors
from mtl.transfer.matching import Student, matching_loss
from mtl.transfer.weighting import MatchingWeights, PairWeights

Labelled = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)`` and labels ``(n,)``."""
Matched = tuple[Tensor, Sequence[Tensor]]
"""Images ``(n, C, H, W)`` and the source's maps of them, one tensor per stage; no labels."""


@dataclass(frozen=True)
class Transfer:
    """Everything that an outer step needs except data.

    Args:
        student: the target and its adapters, in the mode to use; running batch statistics are not updated.
        weighting: the meta-networks.
        optimizer: optimiser of the inner loop.
        matching_steps: K, at least 1.
        window: take K / window matching steps on every ``window``-th minibatch, each with ``window`` times the loss.
            With plain descent, lazy windows amount to this. 1 takes all steps.
        window_images: images that :class:`mtl.Windowed` linearises a window at, evenly out of the minibatches of its
            steps; their total for no subset. None: the minibatch of its anchor's step. Of use where every step has a
            minibatch of its own; to keep one for a whole window is cheaper.
        storage: storage of inner-loop states, see :class:`mtl.metagrad.OnHost`.

    Raises:
        ValueError: K is less than one or no multiple of the window, or the target draws random numbers.
    """

    student: Student
    weighting: MatchingWeights
    optimizer: AbstractInnerOptimizer
    matching_steps: int = 2
    window: int = 1
    window_images: int | None = None
    storage: StateStorage = field(default_factory=OnDevice)

    def __post_init__(self) -> None:
        if self.matching_steps < 1 or self.window < 1 or self.matching_steps % self.window:
            raise ValueError(
                f"matching_steps={self.matching_steps}, window={self.window}: expected at least one step, and a window "
                "that divides them; the step on the classification loss does not count"
            )
        if self.window_images is not None and self.window_images < 1:
            raise ValueError(f"window_images={self.window_images}: expected 1 or more, or None for the anchor's own")
        if random := [n for n, m in self.student.named_modules() if _is_random(m)]:
            raise ValueError(
                f"{random[:3]} of the target draw random numbers, but the inner loss must return the same value each "
                "time; build the target without dropout and stochastic depth"
            )

    @property
    def meta(self) -> Tensors:
        """The weights of the meta-networks that are to be trained, detached."""
        return {k: p.detach() for k, p in self.weighting.named_parameters() if p.requires_grad}

    def problem(self, matched: Callable[[int], Matched], labelled: Labelled, outer: Labelled) -> InnerProblem:
        """The inner problem that starts at the student's present weights.

        Args:
            matched: returns the images of matching step ``0 .. K - 1`` and their source maps; always the same ones.
            labelled: minibatch of the last virtual step, on the classification loss.
            outer: minibatch of the outer loss.
        """
        network = Functional(self.student)
        start = network.weights()
        last = self.matching_steps // self.window  # the step on the classification loss

        def matching(weights: Tensors, meta: Tensors, images: Tensor, source: Sequence[Tensor]) -> Tensor:
            _, _, adapted = network(weights, images[None], sizes=[m.shape[2:] for m in source])
            adapted = [r.squeeze(0) for r in adapted]
            return self.window * matching_loss(self.pair_weights(meta, source), source, adapted).mean(0, keepdim=True)

        def classification(weights: Tensors, images: Tensor, labels: Tensor) -> Tensor:
            logits, _, _ = network(weights, images[None])
            return F.cross_entropy(logits.squeeze(0), labels)[None]

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            if step == last:
                return classification(weights, *labelled)
            return matching(weights, meta, *matched(step * self.window))

        def window_loss(weights: Tensors, meta: Tensors, steps: range) -> Tensor:
            if last not in steps:
                batches = [matched(step * self.window) for step in steps]
                return matching(weights, meta, *union(batches, self.window_images or 0))
            before = range(steps.start, last)
            loss = classification(weights, *labelled)
            return (loss + len(before) * window_loss(weights, meta, before)) / len(steps) if before else loss

        return InnerProblem(
            init=lambda meta: start,
            inner_loss=inner_loss,
            outer_loss=lambda weights, meta: classification(weights, *outer),
            num_steps=last + 1,
            optimizer=self.optimizer,
            storage=self.storage,
            window_loss=None if self.window_images is None else window_loss,
        )

    def pair_weights(self, meta: Tensors, source: Sequence[Tensor]) -> PairWeights:
        """Output of the meta-networks with the weights ``meta`` for a source's maps."""
        return functional_call(self.weighting, meta, (source,))


def union(batches: Sequence[Matched], most: int) -> Matched:
    """At most so many images of some minibatches, evenly spaced, and their maps."""
    images = torch.cat([x for x, _ in batches])
    chosen = torch.linspace(0, len(images) - 1, min(most, len(images)), device=images.device).round().long()
    return images[chosen], [torch.cat(stage)[chosen] for stage in zip(*(maps for _, maps in batches), strict=True)]


def _is_random(module: nn.Module) -> bool:
    """Whether a module is active dropout, drops in its head (timm), or has stochastic depth (timm, transformers)."""
    rates = [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []
    return any([*rates, getattr(module, "drop_rate", None), getattr(module, "drop_prob", None)])


def set_gradients(module: nn.Module, gradients: Tensors) -> None:
    """Set the ``grad`` of the module's parameters that have a gradient."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.grad = gradients[name].to(parameter.dtype)
