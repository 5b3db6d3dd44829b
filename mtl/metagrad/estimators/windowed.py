"""Windowed meta-gradient estimation: one gradient, or one linearisation of it, serves a window of inner steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import Adjoint, MetaGradient, Sweep
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import unroll

Mode = Literal["adaptive", "exact-forward", "lazy"]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Windowed(AbstractEstimator):
    r"""Reuse one gradient over a window of inner steps (the idea of arXiv 2006.04298).

    The K steps are cut into windows of ``window`` steps (the last may be shorter, with n steps). On the way back a
    window is linearised at one anchor,

    .. math:: \lambda \mathrel{-}= n \alpha H_a \lambda, \qquad \text{acc} \mathrel{-}= n \alpha M_a \lambda,

    instead of at each of its steps. That takes :math:`\lambda` as it is behind the window for all of its steps. But the
    product :math:`H_a c` of the pull says already how :math:`\lambda` changes along the largest direction of curvature
    in it, so with ``rank_one`` the n updates are walked back once more (element-wise work alone), each feeling what
    the steps after it have changed as the matrix of rank one that the product determines
    (:class:`mtl.metagrad.sweep.RankOne`) says. For plain descent and one direction, that is :math:`(1 - \alpha h)^n` in
    place of :math:`1 - n \alpha h`. The modes differ in the steps really taken and in how a window is walked back:

    - ``"lazy"``: the gradient is evaluated once per window and applied n times; its sweep is exact *for that coarse
      loop*. With plain SGD on a fixed batch this is exactly MAML with K / window steps of size ``window * lr``: compare
      with that before claiming a gain. Adapting later takes the K fine steps.
    - ``"exact-forward"``: K true steps; one pull per window (or ``substeps`` pulls, each for its share of the window,
      on the same anchor graph).
    - ``"adaptive"`` (default): K true steps; a window is walked back in the largest sub-steps whose relative change of
      the cotangent stays near ``tau``, each linearised at its own anchor. Nothing extra where curvature is low; where
      it is high the sub-steps shrink to single ones, which are the exact sweep at its price, and grow again once the
      cotangent has little left of the direction that made them short.

    A window is linearised at the loss of its anchor's step, or at the mean over its steps where the problem has a
    ``window_loss``: give one where every step has a minibatch of its own, see :class:`mtl.InnerProblem`. Where steps
    draw samples, the modes with K true steps linearise a window with the samples of its anchor; a lazy window draws
    once, at its start.

    Cost: lazy K/window gradients and K/window pulls; otherwise K gradients and K/window pulls (more in adaptive mode
    where curvature asks for it). Memory of one step for any K. Adaptive mode reads two numbers from the device per
    pull.
    Equals: :class:`mtl.Exact` at ``window=1`` in every mode, and with ``rank_one`` where one direction alone curves and
    has a third of the cotangent or more. Past ``window * lr * h_max >= 2`` a window without ``rank_one`` is unstable,
    past twice that one with it, and, but for lazy ones, the loss does not show it: watch the diagnostics ``max_rho``,
    the largest relative change of the cotangent per step, and ``past_cliff``, the fraction of windows that add up to a
    change above one.

    Args:
        window: inner steps per window, at least 1.
        mode: see above.
        anchor: which step of the window is linearised; ``"middle"`` cancels the drift of curvature to first order for
            odd lengths, and nearly for even ones. Lazy windows always use their start.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.
        substeps: pulls per window in mode ``"exact-forward"``; 1 .. window.
        tau: aimed-for relative change of the cotangent per sub-step in mode ``"adaptive"``; in (0, 1).
        rank_one: see above. Lazy windows, whose sweep is exact for their own loop, and those of several ``substeps`` go
            without. What meta-parameters in the inner loss receive is corrected by a mean over the tasks of a batch.

    Raises:
        ValueError: for values outside these ranges.
    """

    window: int = 5
    mode: Mode = "adaptive"
    anchor: Anchor = "middle"
    pull: PullChoice = "reverse"
    substeps: int = 1
    tau: float = 0.4
    rank_one: bool = True

    def __post_init__(self) -> None:
        as_pull(self.pull)
        modes, anchors = get_args(Mode), get_args(Anchor)
        self._require(self.window >= 1, "window", "at least one inner step; window=1 is the exact gradient")
        self._require(self.mode in modes, "mode", "'adaptive', 'exact-forward' or 'lazy'")
        self._require(self.anchor in anchors, "anchor", "'start', 'middle' or 'end'")
        self._require(1 <= self.substeps <= self.window, "substeps", f"1 .. window ({self.window})")
        if self.substeps > 1 and self.mode != "exact-forward":
            raise ValueError(
                f"Windowed(substeps={self.substeps}, mode={self.mode!r}): only mode='exact-forward' takes substeps"
            )
        self._require(0 < self.tau < 1, "tau", "a number between 0 and 1; smaller is closer to exact")

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        trajectory = unroll(problem, meta, reuse=self.window if self.mode == "lazy" else 1)
        sweep = Sweep(problem, meta, self.pull, trajectory)
        rhos: list[Tensor] = []
        changes: list[Tensor] = []  # relative change of the cotangent that one plain step would make of a window
        ahead: Tensor | None = None
        for start in reversed(range(0, problem.num_steps, self.window)):
            stop = min(start + self.window, problem.num_steps)
            if self.mode == "adaptive":
                of_window, ahead = self._adaptively(sweep, start, stop, ahead)
            else:
                of_window = self._in_pieces(sweep, start, stop)
            rhos += of_window
            changes.append((stop - start) * torch.stack(of_window).amax())
        if rhos:
            past = (torch.stack(changes) > 1).float().mean()
            sweep.diagnostics |= {"max_rho": torch.stack(rhos).amax(), "past_cliff": past}
        return sweep.finish()

    def _anchor(self, start: int, stop: int) -> int:
        if self.mode == "lazy" or self.anchor == "start":
            return start
        return stop - 1 if self.anchor == "end" else start + (stop - start) // 2

    def _in_pieces(self, sweep: Sweep, start: int, stop: int) -> list[Tensor]:
        """Walk back over a window in nearly equal pieces, all linearised at one anchor; their ``rho``."""
        pieces = 1 if self.mode == "lazy" else min(self.substeps, stop - start)
        bounds = [start + (stop - start) * i // pieces for i in range(pieces + 1)]
        rhos = []
        for low, high in reversed(list(pairwise(bounds))):
            steps = None if self.mode == "lazy" else range(start, stop)
            rank_one = self.rank_one and self.mode != "lazy" and pieces == 1
            sweep.adjoint, rho, _ = _look(sweep, low, high, self._anchor(start, stop), steps, rank_one)
            rhos.append(rho)
        return rhos

    def _adaptively(
        self, sweep: Sweep, start: int, stop: int, ahead: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Walk back over a window in sub-steps that change the cotangent of no task by much more than ``tau``.

        What the last accepted sub-step left to change predicts the next. One that turns out to change a cotangent by
        more than ``2 tau`` is taken again, shorter, at an anchor of its own: past the cliff the middle of the whole
        window says little about its ends.

        Args:
            ahead: ``rho`` as it is predicted of the window's last steps; None where nothing is known.

        Returns:
            The ``rho`` of each sub-step, and the prediction for the steps before the window.
        """
        sync_max, rhos = sweep.problem.execution.sync_max, []
        while stop > start:
            length = stop - start
            if ahead is not None:
                length = min(length, _steps_within(self.tau, ahead))
            candidate, rho, left = self._look_back(sweep, stop - length, stop)
            rho = sync_max(rho)
            if length > 1 and float(rho) * length > 2 * self.tau:
                length = min(length - 1, _steps_within(self.tau, rho))
                candidate, rho, left = self._look_back(sweep, stop - length, stop)
                rho = sync_max(rho)
            sweep.adjoint, ahead, stop = candidate, sync_max(left), stop - length
            rhos.append(rho)
        return rhos, ahead

    def _look_back(self, sweep: Sweep, start: int, stop: int) -> tuple[Adjoint, Tensor, Tensor]:
        return _look(sweep, start, stop, self._anchor(start, stop), range(start, stop), self.rank_one)


def _look(
    sweep: Sweep, start: int, stop: int, anchor: int, steps: range | None, rank_one: bool
) -> tuple[Adjoint, Tensor, Tensor]:
    r"""Where one linearisation would lead, and the largest relative change of a task's cotangent per step: ``rho`` of
    these steps, and what to expect of the steps before them.

    A large change is most often the work of one direction of high curvature, that of the change :math:`h` itself. Of
    it the cotangent has :math:`\langle\lambda, h\rangle / |h|` before and after, and the next change is smaller in the
    same ratio: hardly any is left where these steps have taken that direction away. More than ``rho`` is never
    expected.
    """
    before = sweep.adjoint.weights
    candidate, h = sweep.look(start, stop, anchor, steps, rank_one)
    tiny = torch.finfo(next(iter(before.values())).dtype).tiny
    change = tensors.norm(h)
    kept = (tensors.dot(candidate.weights, h) / tensors.dot(before, h)).abs()
    rho = change / tensors.norm(before).clamp_min(tiny)
    left = change * kept / tensors.norm(candidate.weights).clamp_min(tiny)
    left = torch.fmin(left, rho)  # not a number where nothing changes
    return candidate, rho.amax() / (stop - start), left.amax() / (stop - start)


def _steps_within(tau: float, rho: Tensor) -> int:
    """The largest number of steps, at least one, whose predicted change stays within ``tau``."""
    value = float(rho)
    # Not finite: the episode is lost anyway, and is reported by whoever sees its loss.
    return max(1, int(tau / max(value, 1e-9))) if math.isfinite(value) else 1
