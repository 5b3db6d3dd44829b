r"""Pulls: how Hessian-vector products (HVPs) of the inner loss are evaluated.

At an anchor, the fast weights :math:`\theta` of one inner step, write :math:`H = \partial^2 L/\partial\theta^2` and
:math:`M = \partial^2 L/\partial\phi\,\partial\theta`. One *pull* takes a cotangent :math:`c` (one tensor per fast
weight) and returns the pair :math:`(H c,\ M c)`: it pulls a gradient one step back through the inner loop, to the
weights before the step and to the meta-parameters. All pulls honour the same contract and are interchangeable; they
differ in cost and in what they ask of the network.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtl.metagrad import tensors
from mtl.metagrad.compiling import AS_WRITTEN, not_compiled
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.shared import SharedSetting
from mtl.metagrad.tensors import Tensors

Products = Callable[[Tensors], tuple[Tensors, Tensors]]
"""``cotangent -> (H c, M c)`` at a fixed anchor."""

Known = Callable[[], Tensors]
"""Fetches a gradient that was evaluated already, which may wait in the host's memory."""


_MATH_ATTENTION = SharedSetting(lambda: sdpa_kernel(SDPBackend.MATH))


_COMPILED = ("donated buffers", "aot_autograd")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Use the one attention kernel that has a second derivative, and compiled code as it was written; undone after.

    The fused kernels have none (PyTorch issue 116350), nor has compiled code. Both are settings of the whole process.

    Raises:
        RuntimeError: code that was compiled in another way than by ``torch.compile`` was differentiated twice.
    """
    try:
        with _MATH_ATTENTION.held(), AS_WRITTEN.held():
            yield
    except RuntimeError as e:
        if not any(words in str(e) for words in _COMPILED):
            raise
        raise RuntimeError(
            "compiled code has no second derivative: give the network or the losses uncompiled, or use "
            "pull='finite-difference', as in Windowed(pull='finite-difference'), or FirstOrder"
        ) from e


class AbstractPull(abc.ABC):
    """How ``(H c, M c)`` is evaluated."""

    @abc.abstractmethod
    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        """Linearise the inner gradient of ``step`` at ``weights``; the result may be called several times.

        Args:
            gradient: fetches the inner gradient there, where it is known already.
        """

    def for_sweep(self) -> AbstractPull:
        """The pull of one backward sweep: itself, unless it learns from one anchor for the next."""
        return self


@dataclass(frozen=True)
class Reverse(AbstractPull):
    """Reverse over reverse: differentiate the gradient. Exact.

    Cost: 5.9 support forwards for the first product at an anchor, about 2.2 for each further one. Needs a network with
    a double backward.

    Raises:
        RuntimeError: when an operation of the network has no second derivative.
    """

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        return self.with_gradient(problem, weights, meta, step)[1]

    @not_compiled
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
        unscaled = lambda group: tensors.times(group, unscale)  # noqa: E731

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            h, m = _pull_back(gradient, weights, meta, cotangent, size)
            return (h, m) if scale is None else (unscaled(h), unscaled(m))

        return unscaled(tensors.detach(gradient)), products


@not_compiled  # no closure: it would stand in a cycle, and keep the graph until the garbage collector comes
def _pull_back(
    gradient: Tensors, weights: Tensors, meta: Tensors, cotangent: Tensors, size: float | None
) -> tuple[Tensors, Tensors]:
    seeds = [cotangent[k] for k in gradient]
    with twice_differentiable():  # checkpointed activations are recomputed here
        h, m = tensors.grad(gradient.values(), weights, meta, cotangents=seeds, retain_graph=True, magnitude=size)
    return h, m


NOT_AGAIN = ("NotImplemented", "autograd::Error")
"""Names of the nodes that autograd puts where a derivative cannot be differentiated again. Where such a node cuts the
only path to an input, the second derivative comes out as a silent zero, not as an error: so they are looked for."""


def require_double_backward(gradient: Tensors) -> None:
    """Refuse a gradient that an operation of the network made without a derivative of its own.

    Raises:
        RuntimeError: naming the fast weight.
    """
    if not _cut(gradient.values()):  # one walk for all of them; the culprit is looked for when there is one
        return
    name = next(name for name, value in gradient.items() if _cut([value]))
    raise RuntimeError(
        f"the inner gradient of {name!r} has no second derivative (a fused kernel in the network?); "
        "use pull='finite-difference', or load the backbone with an eager attention implementation"
    )


def _cut(gradient: Iterable[Tensor]) -> bool:
    return any(node.name().endswith(NOT_AGAIN) for node in tensors.nodes(gradient))


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

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        problem.execution.require_second_order()
        return lambda cotangent: _push_forward(problem, weights, meta, step, cotangent)


@not_compiled
def _push_forward(
    problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, cotangent: Tensors
) -> tuple[Tensors, Tensors]:
    scale = problem.execution.loss_scale
    # Contiguous: a tangent is written to, and an expanded tensor has one place for several elements.
    theta, phi = (tensors.leaf({k: v.contiguous() for k, v in group.items()}) for group in (weights, meta))
    length = 1.0 if scale is None else tensors.power_of_two(cotangent.values())
    with torch.enable_grad(), twice_differentiable(), forward_ad.dual_level():
        dual = {k: forward_ad.make_dual(v, (cotangent[k] * length).to(v.dtype)) for k, v in theta.items()}
        h, m = tensors.grad(problem.inner_loss(dual, phi, step).sum(), dual, phi, magnitude=scale)
        return _tangents(h, length), _tangents(m, length)


def _tangents(values: Tensors, length: Tensor | float) -> Tensors:
    pairs = {k: (v, forward_ad.unpack_dual(v).tangent) for k, v in values.items()}
    # No tangent: the gradient does not change along the cotangent.
    return {k: torch.zeros_like(v) if t is None else t.detach() / length for k, (v, t) in pairs.items()}


@dataclass(frozen=True)
class FiniteDifference(AbstractPull):
    r"""Difference of two plain gradients, task by task.

    .. math:: (H c, M c) \approx \frac{\nabla L(\theta + \epsilon c) - \nabla L(\theta - \epsilon c)}{2 \epsilon},
              \qquad \epsilon = \text{radius} / \lVert c \rVert

    Cost: 4.2 support forwards and first-order memory; no second derivative is taken, so fused attention, activation
    checkpointing and sharded weights keep working. The error falls as ``radius**2`` until rounding takes over. ReLU
    networks have kinks that a difference crosses: prefer ``Reverse`` there.

    With ``sides=1`` the second gradient is the one at :math:`\theta`, which the forward loop has evaluated already:
    half the cost, where no meta-parameter acts inside the inner loss. The error falls as ``radius`` only, so the radius
    has to be smaller; in low precision, where it has to be larger, take both sides.

    Args:
        radius: Euclidean length of the displacement of one task's fast weights. In float32 1e-2 .. 1e-1 for two sides,
            about 1e-3 for one.
        sides: 2 for a central difference, 1 for a one-sided one.

    Raises:
        ValueError: when ``radius`` is not positive, or ``sides`` neither 1 nor 2.
    """

    radius: float = 1e-2
    sides: int = 2

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(
                f"FiniteDifference(radius={self.radius}): expected a positive length, 1e-2 .. 1e-1 in float32"
            )
        if self.sides not in (1, 2):
            raise ValueError(f"FiniteDifference(sides={self.sides}): expected 1 or 2")

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        known = gradient if self.sides == 1 else None

        def evaluate(at: Tensors, seeds: Tensor, look: bool = False) -> tuple[Tensors, Tensors, bool]:
            theta, phi = tensors.leaf(at), tensors.leaf(meta)
            with torch.enable_grad():
                losses = problem.inner_loss(theta, phi, step)
            acts = look and bool(tensors.reaches([losses], phi))
            # The seeds divide by epsilon before tasks are summed:
            # a meta-parameter shared by tasks sees each task with its own epsilon.
            scale = problem.execution.loss_scale
            h, m = tensors.grad(losses, theta, phi, cotangents=[seeds.to(losses.dtype)], magnitude=scale)
            return h, m, acts

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            length = tensors.norm(cotangent)
            epsilon = self.radius / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5)
            offset, seeds = tensors.scale(cotangent, epsilon), 1 / (self.sides * epsilon)
            h_plus, m_plus, acts = evaluate(tensors.add(weights, offset), seeds, look=known is not None)
            if known is not None and not acts:
                return tensors.add(h_plus, tensors.scale(known(), seeds), -1.0), m_plus
            away = tensors.add(weights, offset, -1.0) if self.sides == 2 else weights
            h_minus, m_minus, _ = evaluate(away, -seeds)
            return tensors.add(h_plus, h_minus), tensors.add(m_plus, m_minus)

        return products


@dataclass(frozen=True)
class Automatic(AbstractPull):
    """One-sided finite differences where they are as good as the exact products, and those elsewhere.

    Decided anew in every sweep: the first products are exact, and are compared with the difference along the same
    cotangent. A network without second derivatives gets two-sided differences, without a comparison.

    Cost: that of ``Reverse`` and of one difference at the first anchor; then that of what was chosen. Worth it from
    three anchors upwards.

    Args:
        tolerance: largest relative error of either product, of any task, at which differences are taken.
        radius: of the differences.

    Raises:
        ValueError: when either is not positive.
    """

    tolerance: float = 0.01
    radius: float = 1e-3

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or not self.radius > 0:
            raise ValueError(
                f"Automatic(tolerance={self.tolerance}, radius={self.radius}): expected two positive numbers"
            )

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        return self.for_sweep().at(problem, weights, meta, step, gradient)

    def for_sweep(self) -> AbstractPull:
        return _Deciding(self)


class _Deciding(AbstractPull):
    """Takes the exact products until it has compared one."""

    def __init__(self, options: Automatic) -> None:
        self._options, self._difference = options, FiniteDifference(options.radius, sides=1)
        self._chosen: AbstractPull | None = None

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        if self._chosen is None and problem.execution.no_double_backward_reason:
            self._chosen = FiniteDifference()
        if self._chosen is not None:
            return self._chosen.at(problem, weights, meta, step, gradient)
        exact = Reverse().at(problem, weights, meta, step, gradient)
        difference = self._difference.at(problem, weights, meta, step, gradient)

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            found = exact(cotangent)
            if self._chosen is None:
                errors = [_error(a, b) for a, b in zip(difference(cotangent), found, strict=True)]
                good = float(problem.execution.sync_max(torch.stack(errors).amax())) <= self._options.tolerance
                self._chosen = self._difference if good else Reverse()
            return found

        return products


def _error(found: Tensors, exact: Tensors) -> Tensor:
    """Largest relative error of what belongs to one task, or of all that tasks share; not a number is a large one."""
    errors = [((found[k] - v).norm(), v.norm()) for k, v in exact.items()]
    if not errors:
        return torch.zeros(())
    off, length = (torch.stack(values).norm() for values in zip(*errors, strict=True))
    return (off / length.clamp_min(torch.finfo(length.dtype).tiny)).nan_to_num(float("inf"))


PullChoice = str | AbstractPull
"""A pull, or its name."""

PULLS: dict[str, Callable[[], AbstractPull]] = {
    "reverse": Reverse,
    "forward-over-reverse": ForwardOverReverse,
    "finite-difference": FiniteDifference,
    "one-sided-difference": lambda: FiniteDifference(1e-3, sides=1),
    "auto": Automatic,
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
