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
from mtl.metagrad.sweep import Adjoint, Look, MetaGradient, Sweep
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
      the cotangent stays near ``tau``, each linearised at its own anchor (or, where an attempt was a little too long,
      at the anchor of that). Nothing extra where curvature is low; where it is high the sub-steps shrink to single
      ones, which are the exact sweep at its price, and grow again once the cotangent has little left of the direction
      that made them short.

    A window is linearised at the loss of its anchor's step, or at the mean over its steps where the problem has a
    ``window_loss``: give one where every step has a minibatch of its own, see :class:`mtl.InnerProblem`. Where steps
    draw samples, the modes with K true steps linearise a window with the samples of its anchor; a lazy window draws
    once, at its start.

    Cost: lazy K/window gradients and K/window pulls; otherwise K gradients and K/window pulls (more in adaptive mode
    where curvature asks for it). Memory of one step for any K. Adaptive mode reads two to four numbers from the device
    per pull.
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
        rank_one = self.rank_one and self.mode != "lazy" and pieces == 1
        of = None if self.mode == "lazy" else range(start, stop)
        rhos = []
        for low, high in reversed(list(pairwise(bounds))):
            look = sweep.look(low, high, self._anchor(start, stop), of)
            rhos.append(_relative_change(sweep, look).amax() / (high - low))
            sweep.adjoint = sweep.behind(look, rank_one)
        return rhos

    def _adaptively(
        self, sweep: Sweep, start: int, stop: int, ahead: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Walk back over a window in sub-steps that change the cotangent of no task by much more than ``tau``.

        What the last accepted sub-step left to change predicts the next. One that turns out to change a cotangent by
        more than ``2 tau`` is taken again, shorter. Up to ``4 tau``, its product serves for that too, unless a single
        step is left, which has to be exact; past the cliff, the middle of the whole window says little about its ends,
        and the shorter one has an anchor of its own.

        Args:
            ahead: ``rho`` as it is predicted of the window's last steps; None where nothing is known.

        Returns:
            The ``rho`` of each sub-step, and the prediction for the steps before the window.
        """
        sync_max, rhos = sweep.problem.execution.sync_max, []

        def look_back(length: int, longer: Look | None = None) -> tuple[Look, Tensor, Tensor]:
            first = stop - length
            if longer is None:
                look = sweep.look(first, stop, self._anchor(first, stop), range(first, stop))
            else:
                look = sweep.shorter(longer, length)
            change = _relative_change(sweep, look)
            return look, change, sync_max(change.amax() / length)

        while stop > start:
            length = stop - start
            if ahead is not None:
                length = min(length, _steps_within(self.tau, ahead))
            look, change, rho = look_back(length)
            if length > 1 and (changed := float(rho) * length) > 2 * self.tau:
                length = min(length - 1, _steps_within(self.tau, rho))
                near = length > 1 and changed <= 4 * self.tau and self.anchor != "start"
                look, change, rho = look_back(length, look if near else None)
            before, sweep.adjoint = sweep.adjoint, sweep.behind(look, self.rank_one)
            left = torch.fmin(_left_to_change(before, look, sweep.adjoint), change)  # not a number: nothing changes
            ahead, stop = sync_max(left.amax() / length), stop - length
            rhos.append(rho)
        return rhos, ahead


def _relative_change(sweep: Sweep, look: Look) -> Tensor:
    """Of each task's cotangent of the weights, by all the steps looked at."""
    length = tensors.norm(sweep.adjoint.weights)
    return tensors.norm(look.h) / length.clamp_min(torch.finfo(length.dtype).tiny)


def _left_to_change(before: Adjoint, look: Look, after: Adjoint) -> Tensor:
    r"""The relative change of each task to expect of as many steps before those looked at, if it is the smaller one.

    A large change is most often the work of one direction of high curvature, that of the change :math:`h` itself. Of
    it the cotangent has :math:`\langle\lambda, h\rangle / |h|` before and after, and the next change is smaller in the
    same ratio: hardly any is left where these steps have taken that direction away.
    """
    change, length = tensors.norm(look.h), tensors.norm(after.weights)
    kept = (tensors.dot(after.weights, look.h) / tensors.dot(before.weights, look.h)).abs()
    return change * kept / length.clamp_min(torch.finfo(length.dtype).tiny)


def _steps_within(tau: float, rho: Tensor) -> int:
    """The largest number of steps, at least one, whose predicted change stays within ``tau``."""
    value = float(rho)
    # Not finite: the episode is lost anyway, and is reported by whoever sees its loss.
    return max(1, int(tau / max(value, 1e-9))) if math.isfinite(value) else 1
