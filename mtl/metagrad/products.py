r"""Pulls: products of the second derivatives of the inner loss with a cotangent, and the sweep between two of them.

At an anchor :math:`\theta` write :math:`H = \partial^2 L/\partial\theta^2` and
:math:`M = \partial^2 L/\partial\phi\,\partial\theta`. A pull takes a cotangent :math:`c` (one tensor per fast weight)
and returns both products :math:`(H c,\ M c)`. All pulls honour the same contract and are interchangeable; they differ
in cost and in what they ask of the network.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtl.metagrad import tensors
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.tensors import Tensors

Products = Callable[[Tensors], tuple[Tensors, Tensors]]
"""``cotangent -> (H c, M c)`` at a fixed anchor."""


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Use the one attention kernel that has a second derivative, and give the choice back after.

    The fused ones have none (PyTorch issue 116350).
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


class AbstractPull(abc.ABC):
    """How ``(H c, M c)`` is evaluated."""

    @abc.abstractmethod
    def at(self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Products:
        """Linearise the inner gradient of ``step`` at ``weights``; the result may be called several times."""


@dataclass(frozen=True)
class Reverse(AbstractPull):
    """Reverse over reverse: differentiate the gradient. Exact.

    Cost: 5.9 support forwards for the first product at an anchor, about 2.2 for each further one. Needs a network with
    a double backward.

    Raises:
        RuntimeError: when an operation of the network has no second derivative.
    """

    def at(self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Products:
        return self.with_gradient(problem, weights, meta, step)[1]

    def with_gradient(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int
    ) -> tuple[Tensors, Products]:
        """The gradient as well, outside the graph: it is there anyway."""
        problem.execution.require_second_order()
        scale = problem.execution.loss_scale
        weights, meta = tensors.leaf(weights), tensors.leaf(meta)
        with torch.enable_grad(), twice_differentiable():
            loss = problem.inner_loss(weights, meta, step).sum() * (scale or 1.0)
            (gradient,) = tensors.grad(loss, weights, create_graph=True)
        require_double_backward(gradient)
        # The graph stays at the scale of the loss, so that what flows through it a second time does too.
        size, unscale = (None, 1.0) if scale is None else (1.0, 1.0 / scale)
        unscaled = lambda group: {k: v * unscale for k, v in group.items()}  # noqa: E731

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            seeds = [cotangent[k] for k in gradient]
            with twice_differentiable():  # checkpointed activations are recomputed here
                h, m = tensors.grad(
                    gradient.values(), weights, meta, cotangents=seeds, retain_graph=True, magnitude=size
                )
            return (h, m) if scale is None else (unscaled(h), unscaled(m))

        return unscaled(tensors.detach(gradient)), products


NOT_AGAIN = ("NotImplemented", "autograd::Error")
"""Names of the nodes that autograd puts where a derivative cannot be differentiated again. Where such a node cuts the
only path to an input, the second derivative comes out as a silent zero, not as an error: so they are looked for."""


def require_double_backward(gradient: Tensors) -> None:
    """Refuse a gradient that an operation of the network made without a derivative of its own.

    Raises:
        RuntimeError: naming the fast weight.
    """
    for name, value in gradient.items():
        if any(node.name().endswith(NOT_AGAIN) for node in tensors.nodes([value])):
            raise RuntimeError(
                f"the inner gradient of {name!r} has no second derivative (a fused kernel in the network?); "
                "use pull='finite-difference', or load the backbone with an eager attention implementation"
            )


@dataclass(frozen=True)
class ForwardOverReverse(AbstractPull):
    r"""Forward over reverse: the directional derivative of a plain gradient. Exact.

    Second derivatives are symmetric, so the change of :math:`(\partial L/\partial\theta, \partial L/\partial\phi)`
    along :math:`(c, 0)` is :math:`(H c, M c)`: one pass of dual numbers through forward and backward gives both.

    Cost: about twice a plain gradient in arithmetic, first-order depth of graph; every product is evaluated anew.
    Needs a forward-mode formula for every operation of the network and of its backward pass.

    Raises:
        RuntimeError: when an operation has no forward-mode formula.
    """

    def at(self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Products:
        problem.execution.require_second_order()
        scale = problem.execution.loss_scale

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            # Contiguous: a tangent is written to, and an expanded tensor has one place for several elements.
            theta, phi = (tensors.leaf({k: v.contiguous() for k, v in group.items()}) for group in (weights, meta))
            length = 1.0 if scale is None else tensors.power_of_two(cotangent.values())
            with torch.enable_grad(), twice_differentiable(), forward_ad.dual_level():
                dual = {k: forward_ad.make_dual(v, (cotangent[k] * length).to(v.dtype)) for k, v in theta.items()}
                h, m = tensors.grad(problem.inner_loss(dual, phi, step).sum(), dual, phi, magnitude=scale)
                return _tangents(h, length), _tangents(m, length)

        return products


def _tangents(values: Tensors, length: torch.Tensor | float) -> Tensors:
    pairs = {k: (v, forward_ad.unpack_dual(v).tangent) for k, v in values.items()}
    # No tangent: the gradient does not change along the cotangent.
    return {k: torch.zeros_like(v) if t is None else t.detach() / length for k, (v, t) in pairs.items()}


@dataclass(frozen=True)
class FiniteDifference(AbstractPull):
    r"""Central difference of two plain gradients, task by task.

    .. math:: (H c, M c) \approx \frac{\nabla L(\theta + \epsilon c) - \nabla L(\theta - \epsilon c)}{2 \epsilon},
              \qquad \epsilon = \text{radius} / \lVert c \rVert

    Cost: 4.2 support forwards and first-order memory; no second derivative is taken, so fused attention, activation
    checkpointing and sharded weights keep working. The error falls as ``radius**2`` until rounding takes over. ReLU
    networks have kinks that a difference crosses: prefer ``Reverse`` there.

    Args:
        radius: Euclidean length of the displacement of one task's fast weights. 1e-2 .. 1e-1 in float32.

    Raises:
        ValueError: when ``radius`` is not positive.
    """

    radius: float = 1e-2

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(
                f"FiniteDifference(radius={self.radius}): expected a positive length, 1e-2 .. 1e-1 in float32"
            )

    def at(self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Products:
        def gradient(at: Tensors, seeds: torch.Tensor) -> tuple[Tensors, Tensors]:
            theta, phi = tensors.leaf(at), tensors.leaf(meta)
            with torch.enable_grad():
                losses = problem.inner_loss(theta, phi, step)
            # The seeds divide by 2 epsilon before tasks are summed:
            # a meta-parameter shared by tasks sees each task with its own epsilon.
            scale = problem.execution.loss_scale
            h, m = tensors.grad(losses, theta, phi, cotangents=[seeds.to(losses.dtype)], magnitude=scale)
            return h, m

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            length = tensors.norm(cotangent)
            epsilon = self.radius / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5)
            offset = tensors.scale(cotangent, epsilon)
            seeds = 0.5 / epsilon
            h_plus, m_plus = gradient(tensors.add(weights, offset), seeds)
            h_minus, m_minus = gradient(tensors.add(weights, offset, -1.0), -seeds)
            return tensors.add(h_plus, h_minus), tensors.add(m_plus, m_minus)

        return products


PullChoice = str | AbstractPull
"""A pull, or its name."""

PULLS: dict[str, Callable[[], AbstractPull]] = {
    "reverse": Reverse,
    "forward-over-reverse": ForwardOverReverse,
    "finite-difference": FiniteDifference,
}


def as_pull(pull: str | AbstractPull) -> AbstractPull:
    """A pull by name.

    Raises:
        ValueError: for a name that is none.

    >>> as_pull("reverse")
    Reverse()
    """
    if isinstance(pull, AbstractPull):
        return pull
    if pull not in PULLS:
        raise ValueError(f"pull={pull!r}: expected one of {sorted(PULLS)} or an instance of a pull")
    return PULLS[pull]()


@dataclass(frozen=True)
class Adjoint:
    """The sweep's running cotangents.

    Of the fast weights, of the optimiser state, and what the meta-parameters have received so far.
    """

    weights: Tensors
    state: Tensors
    meta: Tensors


def through_updates(
    problem: InnerProblem,
    meta: Tensors,
    weights: Tensors,
    state: Tensors,
    gradients: Sequence[Tensors],
    adjoint: Adjoint,
) -> tuple[Adjoint, Tensors]:
    r"""Walk an adjoint back through consecutive updates, holding their gradients fixed.

    The composed update from ``(weights, state)`` is differentiated with one displacement shared by all its gradients.
    With plain gradient descent over n steps the displacement receives :math:`c = -n \alpha \lambda`; momentum, decay
    and learned step sizes come out right of themselves.
    Cost: element-wise work only.

    Returns:
        The adjoint before the updates without the network's share, and the cotangent ``c`` that a pull turns into that
        share.
    """
    weights, state, meta = tensors.leaf(weights), tensors.leaf(state), tensors.leaf(meta)
    shared = tensors.leaf(tensors.zeros_like(weights))
    with torch.enable_grad():
        new_weights, new_state = weights, state
        for gradient in gradients:
            new_weights, new_state = problem.optimizer.update(
                new_weights, new_state, tensors.add(gradient, shared), meta
            )
    outputs = [*new_weights.values(), *new_state.values()]
    seeds = [*(adjoint.weights[k] for k in new_weights), *(adjoint.state[k] for k in new_state)]
    d_weights, d_state, d_meta, cotangent = tensors.grad(outputs, weights, state, meta, shared, cotangents=seeds)
    return Adjoint(d_weights, d_state, tensors.add(adjoint.meta, d_meta)), cotangent


def add_products(adjoint: Adjoint, products: tuple[Tensors, Tensors]) -> Adjoint:
    """Add the network's share ``(H c, M c)`` to an adjoint."""
    h, m = products
    return Adjoint(tensors.add(adjoint.weights, h), adjoint.state, tensors.add(adjoint.meta, m))
