"""Tiny bilevel problems in float64 with meta-parameters of all four types, for the laws of the estimators."""

from __future__ import annotations

from dataclasses import replace

import torch

from mtl.metagrad.optimizers import InnerAdam, InnerNormalised, InnerSGD
from mtl.metagrad.problem import InnerProblem

TASKS, EXAMPLES, FEATURES, HIDDEN = 3, 6, 4, 3


def averages(meta: dict) -> dict:
    """Averages for Adam to start from: a meta-parameter of type O, and functions of others."""
    square = (meta["both"] ** 2).mean(1, keepdim=True) + 0.05
    return {
        "step": torch.tensor(3.0, dtype=torch.float64),
        **{"m.first": meta["average"], "m.second": 0.1 * meta["both"], "m.idle": torch.zeros(1)},
        **{"v.first": meta["average"] ** 2 + 0.1, "v.second": square, "v.idle": torch.ones(1)},
    }


OPTIMIZERS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.1},
    "momentum+decay": {"momentum": 0.8, "weight_decay": 0.05},
    "clipped": {"momentum": 0.5, "weight_decay": 0.05, "clip": 0.7},
    "adam": {"kind": InnerAdam, "betas": (0.8, 0.9), "eps": 1e-3},
    "adam, clipped": {"kind": InnerAdam, "betas": (0.8, 0.9), "eps": 1e-2, "clip": 0.7},
    "adam, warm": {"kind": InnerAdam, "betas": (0.8, 0.9), "eps": 1e-3, "start": averages},
    "normalised": {"kind": InnerNormalised, "momentum": 0.5, "eps": 1e-3},
    "LARS": {"kind": InnerNormalised, "weight_decay": 0.1, "relative": True, "eps": 1e-3},
}


def regression(
    steps: int = 6,
    *,
    lr: float = 0.1,
    seed: int = 0,
    fixed_batch: bool = True,
    kind: type = InnerSGD,
    examples: int = EXAMPLES,
    **options,
) -> tuple[InnerProblem, dict]:
    """Two-layer tanh regression.

    Meta: ``start`` (type I), ``outer`` (D), ``inner`` (L), ``rate`` (O), ``both`` (I and L at once), and where
    Adam starts from averages ``average`` (O).

    ``start`` and ``both`` carry a task axis, the others are shared by all tasks.
    """
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    x, y = draw(steps + 1, TASKS, examples, FEATURES), draw(steps + 1, TASKS, examples)
    xq, yq = draw(TASKS, examples, FEATURES), draw(TASKS, examples)
    meta = {
        "start": 0.5 * draw(TASKS, FEATURES, HIDDEN),
        "both": 0.5 * draw(TASKS, HIDDEN),
        "outer": 1 + 0.1 * draw(1),
        "inner": 0.1 * draw(examples),
        "rate": torch.full((1,), lr, dtype=torch.float64),
    }

    if "start" in options:
        meta["average"] = 0.1 * draw(TASKS, FEATURES, HIDDEN)

    def predict(weights, x):
        return (torch.tanh(x @ weights["first"]) * weights["second"][:, None]).sum(-1)

    def init(meta):
        return {
            "first": meta["start"],
            "second": torch.tanh(meta["both"] + meta["start"].mean(1)),
            "idle": torch.zeros(TASKS, 2, dtype=torch.float64),
        }

    def inner_loss(weights, meta, step):
        batch = 0 if fixed_batch else step
        error = (predict(weights, x[batch]) - y[batch]) ** 2
        return (error * torch.exp(meta["inner"])).mean(-1) + 0.05 * (weights["second"] * meta["both"]).sum(-1)

    def outer_loss(weights, meta):
        return ((predict(weights, xq) * meta["outer"] - yq) ** 2).mean(-1)

    return InnerProblem(init, inner_loss, outer_loss, steps, kind(lr=lambda m: m["rate"], **options)), meta


def on_policy(problem: InnerProblem) -> InnerProblem:
    """The regression and a policy gradient: actions drawn with the weights of the step, weighted by ``inner``."""

    def sample(weights, meta, step):
        uniform = torch.rand(TASKS, 5, HIDDEN, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return {"actions": uniform < torch.sigmoid(3 * weights["second"])[:, None]}

    def inner_loss(weights, meta, step, drawn):
        logits = torch.where(drawn["actions"], 3.0, -3.0) * weights["second"][:, None]
        likelihood = torch.nn.functional.logsigmoid(logits).sum(-1)
        reward = (drawn["actions"] * torch.exp(meta["inner"][:HIDDEN])).sum(-1)
        return problem.inner_loss(weights, meta, step) - (reward * likelihood).mean(-1)

    return replace(problem, inner_loss=inner_loss, sample=sample)


def quadratic(steps: int, *, curvature: float, lr: float, seed: int = 0, dim: int = 6) -> tuple[InnerProblem, dict]:
    """Quadratic inner loss whose largest eigenvalue is ``curvature``.

    The exact factor of an eigen-direction is ``(1 - lr * h) ** steps``.
    """
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    basis = torch.linalg.qr(draw(TASKS, dim, dim))[0]
    eigenvalues = curvature * torch.logspace(-2, 0, dim, dtype=torch.float64)
    hessian = basis @ torch.diag(eigenvalues) @ basis.mT
    target, query = draw(TASKS, dim), draw(TASKS, dim)
    meta = {"start": draw(TASKS, dim), "inner": draw(TASKS, dim)}

    def inner_loss(weights, meta, step):
        d = weights["w"] - target
        return 0.5 * torch.einsum("ti,tij,tj->t", d, hessian, d) + (meta["inner"] * weights["w"]).sum(-1)

    return (
        InnerProblem(
            lambda meta: {"w": meta["start"]},
            inner_loss,
            lambda weights, meta: 0.5 * ((weights["w"] - query) ** 2).sum(-1),
            steps,
            InnerSGD(lr=lr),
        ),
        meta,
    )
