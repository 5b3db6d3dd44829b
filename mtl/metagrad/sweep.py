r"""The backward sweep of a meta-gradient (hypergradient), as one object that estimators drive.

Starting from the gradient of the outer loss, a sweep walks from the last inner step to the first. It carries a
cotangent of the fast weights and of the optimiser state, and what the meta-parameters have received so far:

.. math::

    \text{acc} \mathrel{-}= \alpha M_k \lambda, \qquad \lambda \mathrel{-}= \alpha H_k \lambda, \qquad
    k = K-1, \dots, 0

for plain gradient descent. An estimator decides over which steps to go :meth:`Sweep.back`, where to linearise them, and
which to :meth:`Sweep.skip`; what it does not walk over is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.problem import InnerProblem, replaying
from mtl.metagrad.products import Products, PullChoice, as_pull
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import Trajectory, unroll

PARALLEL = 1e-3  # of a cotangent's length: what two may differ by to count as multiples


@dataclass(frozen=True)
class MetaGradient:
    """The gradient of the mean outer loss, and what came up on the way.

    Args:
        losses: ``(tasks,)`` outer losses after adaptation.
        grads: gradient of the *mean* of the losses over tasks, with the keys and shapes of ``meta``.
        weights: the adapted fast weights ``theta_K``, outside every graph.
        gradients: inner gradients evaluated in the forward loop.
        pulls: Hessian-vector products evaluated on the way back.
        diagnostics: numbers worth logging, such as ``max_rho``, the largest relative change per step of a cotangent:
            step size times curvature along it.
    """

    losses: Tensor
    grads: Tensors
    weights: Tensors
    gradients: int
    pulls: int
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """Mean outer loss over tasks."""
        return self.losses.mean()


@dataclass(frozen=True)
class Adjoint:
    """Cotangents of the fast weights and of the optimiser state, and what the meta-parameters have received so far."""

    weights: Tensors
    state: Tensors
    meta: Tensors

    def plus(self, other: Adjoint) -> Adjoint:
        """The sum of two."""
        mine, theirs = (self.weights, self.state, self.meta), (other.weights, other.state, other.meta)
        return Adjoint(*(tensors.add(a, b) for a, b in zip(mine, theirs, strict=True)))

    def times(self, factor: float) -> Adjoint:
        """All of it, scaled."""
        return Adjoint(*(tensors.times(g, factor) for g in (self.weights, self.state, self.meta)))

    def with_products(self, h: Tensors, m: Tensors) -> Adjoint:
        """With the network's share ``(H c, M c)`` added."""
        return Adjoint(tensors.add(self.weights, h), self.state, tensors.add(self.meta, m))


@dataclass(frozen=True)
class RankOne:
    r"""What one product :math:`h = H c` says of the curvature of a task:

    .. math:: \hat H = \frac{h h^T}{d}, \qquad d = \max(c^T h,\; \kappa |c| |h|)

    With :math:`d = c^T h` it is the one symmetric matrix of rank one with :math:`\hat H c = h` (the update of rank one
    of quasi-Newton methods, from nothing). The bound keeps it from claiming more curvature than one product can tell:
    :math:`\kappa` is a third, and so much more where the n steps of a window would overshoot that none of them does.
    Where :math:`c^T h \le 0` it claims none.

    Args:
        rows: h, ``(tasks, P)``.
        size: d, ``(tasks,)``; infinite where no curvature is claimed.
        along: :math:`c^T h`, ``(tasks,)``.
    """

    rows: Tensor
    size: Tensor
    along: Tensor

    LEAST: ClassVar[float] = 1 / 3

    @staticmethod
    def of(c: Tensors, h: Tensors, cotangent: Tensors, steps: int) -> RankOne:
        """Of a pull, and the cotangent of the weights that the window of so many steps began with."""
        rows, along = tensors.flat(h), tensors.dot(c, h)
        length = tensors.norm(h)
        overshot = length / tensors.norm(cotangent).clamp_min(torch.finfo(length.dtype).tiny) / steps
        size = torch.maximum(along, tensors.norm(c) * length * overshot.clamp_min(RankOne.LEAST))
        return RankOne(rows, torch.where(along > 0, size, torch.inf), along)

    def __call__(self, vector: Tensors) -> Tensors:
        r""":math:`\hat H` times it."""
        return tensors.unflat(self._coefficients(vector).unsqueeze(1) * self.rows, vector)

    def share(self, felt: Tensors, c: Tensors) -> Tensor:
        """How much of ``M c`` to count where the steps felt ``felt`` in place of c: a mean over tasks, since ``M c`` of
        meta-parameters that tasks share is a sum over them."""
        changes = self._coefficients(tensors.add(felt, c, -1.0))
        weights = self.along.abs()
        return 1 + (weights * changes).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)

    def _coefficients(self, vector: Tensors) -> Tensor:
        return (tensors.flat(vector) * self.rows).sum(1) / self.size


@dataclass(frozen=True)
class Look:
    """What one linearisation says of consecutive steps, before a sweep has gone back over them.

    Args:
        steps: the steps.
        anchor: the step at which they are linearised.
        of: whose loss that is, see :meth:`Sweep.products`.
        direct: the adjoint before them without the network's share.
        cotangent: c, what the pull was asked for.
        h: ``H c``.
        m: ``M c``.
    """

    steps: range
    anchor: int
    of: range | None
    direct: Adjoint
    cotangent: Tensors
    h: Tensors
    m: Tensors


class Sweep:
    """A sweep in progress, from the last inner step towards the first.

    At most one anchor's graph is alive at a time, so memory is that of one inner step, however many are walked over.

    Args:
        pull: how Hessian-vector products are evaluated.
        trajectory: the inner loop to walk back through; it is unrolled if it is not given.
        kept: products of steps whose graph is alive already; each is let go once used.

    Attributes:
        problem: the inner problem; its inner loss replays what the steps of the trajectory drew.
        losses: ``(tasks,)`` outer losses at the end of the trajectory.
        adjoint: the cotangents so far; estimators may replace it.
        pulls: Hessian-vector products so far.
        diagnostics: goes into the result.
    """

    def __init__(
        self,
        problem: InnerProblem,
        meta: Tensors,
        pull: PullChoice = "reverse",
        trajectory: Trajectory | None = None,
        kept: dict[int, Products] | None = None,
    ) -> None:
        trajectory = trajectory or unroll(problem, meta)
        self.problem, self.meta, self.pull = replaying(problem, trajectory.draws), meta, as_pull(pull).for_sweep()
        self.losses, self.adjoint, outer = outer_adjoint(problem, meta, trajectory)
        self.trajectory = replace(trajectory, reached=trajectory.reached | {"outer": outer})
        self.pulls = 0
        self.diagnostics: dict[str, Tensor] = {}
        self._kept = kept or {}
        self._anchor: tuple[int, range | None] | None = None
        self._products: Products | None = None

    def back(self, start: int, stop: int, anchor: int | None = None) -> None:
        """Walk back from step ``stop`` to ``start``, with the inner gradient linearised once.

        Args:
            anchor: the step at whose weights it is linearised; the first of them by default.
        """
        self.adjoint = self.behind(self.look(start, stop, start if anchor is None else anchor))

    def skip(self, start: int, stop: int) -> None:
        """Walk back from ``stop`` to ``start`` through the updates alone: the inner gradients count as constants."""
        self.adjoint, _ = self.through(start, stop, self.adjoint)

    def finish(self, init: bool = True) -> MetaGradient:
        """The meta-gradient, once the cotangent has reached the initial weights.

        Args:
            init: whether to hand the cotangent to them. Without an inner step, they always get it.
        """
        self.release()
        reached = init or self.problem.num_steps == 0
        grads = through_init(self.problem, self.meta, self.adjoint) if reached else self.adjoint.meta
        # A copy: the last row of a buffer would keep all of it.
        evaluations, weights = self.trajectory.evaluations, tensors.clone(self.trajectory.weights[-1])
        return MetaGradient(self.losses, grads, weights, evaluations, self.pulls, self.diagnostics)

    def look(self, start: int, stop: int, anchor: int, of: range | None = None) -> Look:
        """What one linearisation at step ``anchor`` says of the steps before ``stop``, without going there.

        Args:
            of: see :meth:`products`.
        """
        if (anchor, of) != self._anchor:
            self.release()  # or two graphs are alive while the next is built
        direct, cotangent = self.through(start, stop, self.adjoint)
        return Look(range(start, stop), anchor, of, direct, cotangent, *self.products(anchor, cotangent, of))

    def shorter(self, look: Look, length: int) -> Look:
        """The last steps of a look alone, at the same anchor.

        With plain gradient descent their cotangent is a multiple of the one that the product is known of, and so is
        the product. Otherwise it is another product, of the graph that is there already.
        """
        stop = look.steps.stop
        direct, cotangent = self.through(stop - length, stop, self.adjoint)
        factor, rest = tensors.multiple(cotangent, look.cotangent)
        rest, factor = torch.stack([self.problem.execution.sync_max(rest), factor]).tolist()
        if rest < PARALLEL:
            h, m = tensors.times(look.h, factor), tensors.times(look.m, factor)
        else:
            h, m = self.products(look.anchor, cotangent, look.of)
        return Look(range(stop - length, stop), look.anchor, look.of, direct, cotangent, h, m)

    def behind(self, look: Look, rank_one: bool = False) -> Adjoint:
        """The adjoint before the steps that were looked at.

        Args:
            rank_one: let every step feel what the steps after it have changed, as far as the one product tells.
        """
        if not rank_one or len(look.steps) == 1:  # a single step has none after it
            return look.direct.with_products(look.h, look.m)
        self.release()  # the updates need room for graphs of their own
        curvature = RankOne.of(look.cotangent, look.h, self.adjoint.weights, len(look.steps))
        walked, felt = self.through(look.steps.start, look.steps.stop, self.adjoint, curvature)
        unexplained = tensors.add(look.h, curvature(look.cotangent), -1.0)
        share = curvature.share(felt, look.cotangent)
        return walked.with_products(unexplained, tensors.times(look.m, share))

    def through(
        self, start: int, stop: int, adjoint: Adjoint, curvature: RankOne | None = None
    ) -> tuple[Adjoint, Tensors]:
        """See :func:`through_updates`; of this trajectory's steps."""
        t = self.trajectory
        gradients = t.gradients[start:stop]
        return through_updates(
            self.problem, self.meta, t.weights[start], t.states[start], gradients, adjoint, curvature
        )

    def products(self, anchor: int, cotangent: Tensors, of: range | None = None) -> tuple[Tensors, Tensors]:
        """One pull: ``(H c, M c)`` at the weights of step ``anchor``. Its graph stays until another is asked for.

        Args:
            of: steps of the window whose loss is linearised, by the problem's ``window_loss``; the loss of the anchor's
                own step where it is None, or the problem has no other.
        """
        if self._products is None or (anchor, of) != self._anchor:
            self.release()
            self._products = self._linearised(anchor, of)
            self._anchor = anchor, of
        self.pulls += 1
        return self._products(cotangent)

    def _linearised(self, anchor: int, steps: range | None) -> Products:
        problem, t, of_window = self.problem, self.trajectory, self.problem.window_loss
        if steps is not None and len(steps) > 1 and of_window is not None:
            of_anchor = replace(problem, inner_loss=lambda weights, meta, step: of_window(weights, meta, steps))
            return self.pull.at(of_anchor, t.weights[anchor], self.meta, anchor)
        if (kept := self._kept.pop(anchor, None)) is not None:
            return kept
        known = (lambda: t.gradients[anchor]) if t.fresh(anchor) else None
        return self.pull.at(problem, t.weights[anchor], self.meta, anchor, known)

    def release(self) -> None:
        """Let the anchor's graph go, before another one is built."""
        self._anchor, self._products = None, None


def outer_adjoint(
    problem: InnerProblem, meta: Tensors, trajectory: Trajectory, step: int = -1
) -> tuple[Tensor, Adjoint, set[str]]:
    """Where every sweep starts: the outer losses, and their gradient in the weights and directly in ``meta``.

    Args:
        step: of the trajectory's weights ``theta_0 .. theta_K``, by default the last.

    Returns:
        Losses ``(tasks,)``, their mean's adjoint, and the names of the meta-parameters that stand in the outer loss.
    """
    weights, phi = tensors.leaf(trajectory.weights[step]), tensors.leaf(meta)
    with torch.enable_grad():
        losses = problem.outer_loss(weights, phi)
        loss = losses.mean()
    reached = tensors.reaches([loss], phi)
    d_weights, d_meta = tensors.grad(loss, weights, phi, magnitude=problem.execution.loss_scale)
    adjoint = Adjoint(d_weights, tensors.zeros_like(trajectory.states[step]), d_meta)
    return losses.detach(), adjoint, reached


def through_updates(
    problem: InnerProblem,
    meta: Tensors,
    weights: Tensors,
    state: Tensors,
    gradients: Sequence[Tensors],
    adjoint: Adjoint,
    curvature: RankOne | None = None,
) -> tuple[Adjoint, Tensors]:
    r"""Walk an adjoint back through consecutive updates, holding their gradients fixed.

    The composed update from ``(weights, state)`` is differentiated with one displacement shared by all its gradients.
    With plain gradient descent over n steps the displacement receives :math:`c = -n \alpha \lambda`; momentum, decay
    and learned step sizes come out right of themselves.
    Cost: element-wise work only.

    Args:
        curvature: let the gradients change with the weights as this says, in place of holding them fixed.

    Returns:
        The adjoint before the updates without the network's share, and the cotangent ``c`` that a pull turns into that
        share.
    """
    weights, state, meta = tensors.leaf(weights), tensors.leaf(state), tensors.leaf(meta)
    shared = tensors.leaf(tensors.zeros_like(weights))
    with torch.enable_grad():
        new_weights, new_state = weights, state
        for gradient in gradients:
            moved = tensors.add(gradient, shared)
            if curvature is not None:
                moved = dict(zip(moved, _Felt.apply(curvature, *new_weights.values(), *moved.values()), strict=True))
            new_weights, new_state = problem.optimizer.update(new_weights, new_state, moved, meta)
    outputs = [*new_weights.values(), *new_state.values()]
    seeds = [*(adjoint.weights[k] for k in new_weights), *(adjoint.state[k] for k in new_state)]
    d_weights, d_state, d_meta, cotangent = tensors.grad(outputs, weights, state, meta, shared, cotangents=seeds)
    return Adjoint(d_weights, d_state, tensors.add(adjoint.meta, d_meta)), cotangent


class _Felt(torch.autograd.Function):
    """Gradients as they are, and with the derivative in the weights that a :class:`RankOne` says."""

    @staticmethod
    def forward(ctx: Any, curvature: RankOne, *both: Tensor) -> tuple[Tensor, ...]:
        ctx.curvature = curvature
        return both[len(both) // 2 :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        felt = ctx.curvature({str(i): g for i, g in enumerate(grads)})
        return None, *felt.values(), *grads


def through_init(problem: InnerProblem, meta: Tensors, adjoint: Adjoint) -> Tensors:
    """Where every sweep ends: add what the initial weights owe to ``meta``.

    ``init`` is evaluated again so that its graph never meets a step's.
    """
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        weights = problem.init(phi)
    seeds = [adjoint.weights[k] for k in weights]
    (grads,) = tensors.grad(weights.values(), phi, cotangents=seeds, magnitude=problem.execution.loss_scale)
    return tensors.add(adjoint.meta, grads)
