r"""Meta-transfer as an :class:`~mtl.metagrad.InnerProblem`: weights of a matching loss, judged by the target's own.

From the target's present weights :math:`\theta_0`, K steps on the matching loss alone and one on the target's own loss,

.. math::

    \theta_{k+1} = \theta_k - \alpha \nabla_\theta L_{match}(\theta_k, \phi; B_k), \quad
    \theta_{K+1} = \theta_K - \alpha \nabla_\theta L_{own}(\theta_K; B_K), \qquad
    \min_\phi L_{own}(\theta_{K+1}; B_{outer}),

so :math:`\phi`, the weights of :class:`~mtl.transfer.MatchingWeights`, acts inside the inner loss only (type L).
An estimator that drops second derivatives gives it zero, and so does one that looks at the last step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mtl.metagrad.functional import Functional
from mtl.metagrad.optimizers import AbstractInnerOptimizer
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.storage import OnDevice, StateStorage
from mtl.metagrad.tensors import Tensors
from mtl.transfer.matching import Student, matching_loss
from mtl.transfer.weighting import Choice, MatchingWeights

Batch = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)`` and labels ``(n,)``."""


@dataclass(frozen=True)
class Transfer:
    """Source, target and what stands between them: everything that an outer step needs but data.

    Args:
        source: frozen: images to the maps of its stages, without a graph.
        student: the target and its adapters. Its mode counts; batch statistics in training mode leave no trace.
        choosing: the meta-networks.
        optimizer: of the inner loop.
        matching_steps: K.
        window: the matching steps are K / window ones, each of ``window`` times the loss, on every ``window``-th
            minibatch: what lazy windows with plain descent amount to, and have to be compared with. 1 is the loop as it
            stands.
        storage: where states wait, see :class:`mtl.metagrad.OnHost`.

    Raises:
        ValueError: K is less than one or no multiple of the window, or the target draws random numbers.
    """

    source: Callable[[Tensor], list[Tensor]]
    student: Student
    choosing: MatchingWeights
    optimizer: AbstractInnerOptimizer
    matching_steps: int = 2
    window: int = 1
    storage: StateStorage = field(default_factory=OnDevice)

    def __post_init__(self) -> None:
        if self.matching_steps < 1 or self.window < 1 or self.matching_steps % self.window:
            raise ValueError(
                f"matching_steps={self.matching_steps}, window={self.window}: expected at least one step, and a window "
                "that divides them: the step on the target's own loss is no part of one"
            )
        if random := [n for n, m in self.student.named_modules() if _is_random(m)]:
            raise ValueError(
                f"{random[:3]} of the target draw random numbers, but an inner loss is evaluated more than once and "
                "has to repeat itself; build the target without dropout and stochastic depth"
            )

    @property
    def meta(self) -> Tensors:
        """The weights of the meta-networks, outside every graph."""
        return {k: p.detach() for k, p in self.choosing.named_parameters()}

    def problem(self, batch: Callable[[int], Batch], outer: Batch) -> InnerProblem:
        """The inner problem that starts at the student's present weights.

        Args:
            batch: minibatch of step ``0 .. K``, the last for the target's own loss; the same whenever it is asked for.
            outer: what the result is judged on.
        """
        network = Functional(self.student)
        start = network.weights()
        last = self.matching_steps // self.window  # the step on the target's own loss

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            images, labels = batch(step * self.window)
            if step == last:
                return own_loss(weights, images, labels)
            source = self.source(images)
            _, _, adapted = network(weights, images[None], sizes=[m.shape[2:] for m in source])
            adapted = [r.squeeze(0) for r in adapted]
            return self.window * matching_loss(self.choose(meta, source), source, adapted).mean(0, keepdim=True)

        def own_loss(weights: Tensors, images: Tensor, labels: Tensor) -> Tensor:
            logits, _, _ = network(weights, images[None])
            return F.cross_entropy(logits.squeeze(0), labels)[None]

        return InnerProblem(
            init=lambda meta: start,
            inner_loss=inner_loss,
            outer_loss=lambda weights, meta: own_loss(weights, *outer),
            num_steps=last + 1,
            optimizer=self.optimizer,
            storage=self.storage,
        )

    def choose(self, meta: Tensors, source: Sequence[Tensor]) -> Choice:
        """What the meta-networks with other weights make of a source's maps."""
        return functional_call(self.choosing, meta, (source,))


def _is_random(module: nn.Module) -> bool:
    """Dropout layers, networks of timm that drop in their head, and the stochastic depth of both libraries."""
    rates = [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []
    return any([*rates, getattr(module, "drop_rate", None), getattr(module, "drop_prob", None)])


def add_gradients(module: nn.Module, gradients: Tensors) -> None:
    """Put gradients where an optimiser of the module finds them."""
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name].to(parameter.dtype)
