"""Before the first step: is the estimator accurate on these tasks?"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtl.episode import Episode
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.training.fingerprint import calibrate
from mtl.fewshot.training.processes import from_main
from mtl.metagrad import tensors
from mtl.metagrad.diagnostics import Agreement, calibrate_radius, self_check
from mtl.metagrad.estimators import AbstractEstimator, Exact, Rematerialised
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import FiniteDifference
from mtl.metagrad.tensors import Tensors
from mtl.tools.files import write_whole

FILE = "estimator.json"
# Accepted relative error of finite differences. bfloat16 leaves 2 to 9 % at the best radius, in all directions, which
# leaves the cosine of a whole meta-gradient above 0.99.
TOLERANCE, LOW_PRECISION_TOLERANCE = 0.05, 0.15
ONE_SIDED, AS_GOOD = "one-sided-difference", 0.99  # the pull, and the cosine to exact products that recommends it
POOR = 0.5  # a lower cosine is worth a warning


def check_estimator(learner: MetaLearner, first: Callable[[], Episode], folder: Path, main: bool) -> str:
    """Calibrate the learner's estimator on one episode and compare it with the exact gradient.

    An estimator with the pull ``"finite-difference"``, given by name, gets a radius that suits the network. A run that
    is resumed keeps the radius that it began with. The result is written to ``estimator.json``. All processes compute,
    because a backbone may be spread over them, and all take the main one's radius, because theirs must not differ.

    Args:
        first: the episode; not asked for where the estimator was checked before.
        main: whether this is the main process, which decides, writes and warns.

    Returns:
        A line to print, empty when there is nothing to check.
    """
    if learner.inner_steps == 0 or isinstance(learner.estimator, Exact):
        return ""
    path = folder / FILE
    known = from_main(read_check(folder) if main else None)
    if known is not None:
        keep_radius(learner, known["radius"])
        return ""
    episode = first()
    meta, problem = tensors.detach(learner.generator(learner.view(episode.support))), learner.problem(episode)
    tolerance = LOW_PRECISION_TOLERANCE if learner.backbone.low_precision else TOLERANCE
    keep_radius(learner, from_main(_radius(learner.estimator, problem, meta, tolerance)))
    agreement = _agreement(learner.estimator, problem, meta)
    if main:
        record: dict[str, Any] = {"radius": radius_of(learner), "estimator": repr(learner.estimator)}
        for name in ("cosine", "norm_ratio") if agreement else ():
            group: dict[str, float] = getattr(agreement, name)
            record[name] = {k: None if math.isnan(v) else v for k, v in group.items()}
        write_whole(path, json.dumps(record, indent=2).encode())
        if agreement:
            _warn_if_poor(agreement)
    return str(agreement or "") + _hint(learner.estimator, problem, meta)


def _hint(estimator: AbstractEstimator, problem: InnerProblem, meta: Tensors) -> str:
    """Says where cheaper products are as good as the exact ones; all processes compute it, as they do the rest."""
    if getattr(estimator, "pull", None) != "reverse" or problem.execution.loss_scale is not None:
        return ""
    try:
        cheaper = replace(estimator, pull=ONE_SIDED)  # pyright: ignore
        found = self_check(cheaper, problem, meta, reference=estimator)
    except RuntimeError:
        return ""
    off = max((abs(r - 1) for r in found.norm_ratio.values() if not math.isnan(r)), default=1.0)
    if not found.worst >= AS_GOOD or off > 1 - AS_GOOD:
        return ""
    return f"; --pull {ONE_SIDED} agrees with its products (cosine {found.worst:.4f}) and takes a third of their time"


def _radius(estimator: AbstractEstimator, problem: InnerProblem, meta: Tensors, tolerance: float) -> float | None:
    named = getattr(estimator, "pull", None) == "finite-difference"
    return calibrate_radius(problem, meta, tolerance=tolerance).radius if named else None


def keep_radius(learner: MetaLearner, radius: float | None) -> None:
    """Give an estimator that has the pull ``"finite-difference"``, by name, the radius that the run began with."""
    if radius is not None and getattr(learner.estimator, "pull", None) == "finite-difference":
        calibrate(learner, replace(learner.estimator, pull=FiniteDifference(radius)))  # pyright: ignore


def radius_of(learner: MetaLearner) -> float | None:
    """Of the estimator's finite differences; None where it takes none, or where they are not calibrated yet."""
    pull = getattr(learner.estimator, "pull", None)
    return pull.radius if isinstance(pull, FiniteDifference) else None


def read_check(folder: Path) -> dict[str, Any] | None:
    """What a run wrote at its start; None without, and with a warning where it is damaged: it is computed again."""
    if not (path := folder / FILE).is_file():
        return None
    try:
        found = json.loads(path.read_text())
        if isinstance(found["radius"], int | float | None):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    warnings.warn(f"{path} is damaged; the estimator is checked again", stacklevel=4)
    return None


def _agreement(estimator: AbstractEstimator, problem: InnerProblem, meta: Tensors) -> Agreement | None:
    """None where the exact gradient is not available: no second derivative, or not enough memory for one.

    Where the network has no second derivative, the reference takes single steps with the estimator's own differences.
    """
    pull = getattr(estimator, "pull", None)
    differences = problem.execution.no_double_backward_reason and isinstance(pull, FiniteDifference)
    try:
        return self_check(estimator, problem, meta, Rematerialised(pull) if differences and pull else None)
    except RuntimeError:  # torch's own out-of-memory error is one
        return None


def _warn_if_poor(agreement: Agreement) -> None:
    if poor := [f"{k} {c:.2f}" for k, c in agreement.cosine.items() if c < POOR]:
        listed = ", ".join(poor)
        warnings.warn(
            f"{agreement.estimator} points elsewhere than the exact gradient on the first episode (cosine: {listed}); "
            "lower the inner step size, or use Rematerialised",
            stacklevel=4,
        )
