"""Meta-gradient through the last inner steps only."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.metagrad.estimators.base import AbstractEstimator
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import MetaGradient, Sweep
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class Truncated(AbstractEstimator):
    """Sweep the last inner steps, then hand the cotangent to the initial weights as it is (arXiv 1810.10667).

    Cost: K gradients and ``min(last_steps, K)`` pulls, memory of one step.
    Equals: :class:`mtl.Exact` when ``last_steps >= K``. A meta-parameter inside the inner loss loses the share of the
    earlier steps: little in stiff directions, whose cotangent has died out by then, most in slow ones.

    Args:
        last_steps: how many of the last steps are differentiated, at least one (none is :class:`mtl.FirstOrder`).
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Raises:
        ValueError: when ``last_steps`` is not positive.
    """

    last_steps: int = 5
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        self._require(self.last_steps >= 1, "last_steps", "at least one step; for none use FirstOrder()")
        as_pull(self.pull)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        first = max(0, problem.num_steps - self.last_steps)
        sweep = Sweep(problem, meta, self.pull)
        for step in reversed(range(first, problem.num_steps)):
            sweep.back(step, step + 1)
        return sweep.finish()
