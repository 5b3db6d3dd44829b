"""Every estimator, in the table of the laws that hold it; the plain reference, and how far from it a gradient is."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

import mtl
from mtl.metagrad.optimizers import InnerAdam, InnerNormalised
from mtl.metagrad.problem import InnerProblem

# Estimators that equal the exact gradient, whatever the problem.
EXACT = {
    "rematerialised": mtl.Rematerialised(),
    "rematerialised, forward": mtl.Rematerialised("forward-over-reverse"),
    "rematerialised, all kept": mtl.Rematerialised(budget=math.inf),
    "rematerialised, some kept": mtl.Rematerialised(budget=0.014),
    "truncated(K)": mtl.metagrad.Truncated(last_steps=99),
    "binomial(K)": mtl.metagrad.Binomial(order=99),
    "binomial(K), damped": mtl.metagrad.Binomial(order=99, damped=True),
    "shot(0)": mtl.metagrad.SHOT(penalty=0.0),
    "shot, no gap": mtl.metagrad.SHOT(window=1),
    "horizon mixing(0)": mtl.metagrad.HorizonMixing(decay=0.0),
    "truncation mixing(1)": mtl.metagrad.TruncationMixing(decay=1.0),
    "adaptive(1)": mtl.Windowed(window=1),
    "adaptive(3), single steps": mtl.Windowed(window=3, tau=1e-9),
    "exact-forward(1)": mtl.Windowed(window=1, mode="exact-forward"),
    "lazy(1)": mtl.Windowed(window=1, mode="lazy"),
}


# Estimators that are approximate, each with the gradients and pulls it needs for K = 7 inner steps, and the
# meta-parameters that it cannot train (type I: start, L: inner, D: outer, O: rate, I and L: both).
APPROXIMATE = {
    "first-order": (mtl.FirstOrder(), 7, 0, {"inner"}),
    "truncated(3)": (mtl.metagrad.Truncated(last_steps=3), 7, 3, set()),
    "binomial(0)": (mtl.metagrad.Binomial(order=0), 7, 0, {"inner"}),
    "binomial(1)": (mtl.metagrad.Binomial(order=1), 7, 7 + 6, set()),
    "binomial(2)": (mtl.metagrad.Binomial(order=2), 7, 7 + 6 + 5, set()),
    "binomial(2), damped": (mtl.metagrad.Binomial(order=2, damped=True), 7, 7 + 6 + 5, set()),
    "truncation mixing": (mtl.metagrad.TruncationMixing(), 7, 7, set()),
    "lazy(3)": (mtl.Windowed(window=3, mode="lazy"), 3, 3, set()),
    "exact-forward(3)": (mtl.Windowed(window=3, mode="exact-forward"), 7, 3, set()),
    "exact-forward(3), start": (mtl.Windowed(window=3, mode="exact-forward", anchor="start"), 7, 3, set()),
    "exact-forward(3), end": (mtl.Windowed(window=3, mode="exact-forward", anchor="end"), 7, 3, set()),
    "exact-forward(3), plain": (mtl.Windowed(window=3, mode="exact-forward", rank_one=False), 7, 3, set()),
    "substepped(3)": (mtl.Windowed(window=3, mode="exact-forward", substeps=3), 7, 7, set()),
    "adaptive(3)": (mtl.Windowed(window=3), 7, 3, set()),
}


# Estimators of something else: of other horizons, of the solution that the inner loop approaches, of no loss at all.
OTHER = {
    "horizon mixing": (mtl.metagrad.HorizonMixing(), 7, 7, set()),
    "reptile": (mtl.metagrad.Reptile(), 7, 0, {"inner", "outer", "rate"}),
    "neumann(4)": (mtl.metagrad.Neumann(terms=4), 7, 4, {"start", "rate"}),
    "imaml(2)": (mtl.metagrad.ImplicitMAML(iterations=2, tolerance=0), 7, 3, {"rate"}),
    "kfac(2)": (mtl.metagrad.KFAC(iterations=2, tolerance=0), 7, 3, {"start", "rate"}),
    "one-step": (mtl.metagrad.OneStep(), 7, 1, {"start"}),
    "sama": (mtl.metagrad.SAMA(), 7, 1, {"start"}),
    "sama, reverse": (mtl.metagrad.SAMA(pull="reverse"), 7, 1, {"start"}),
    "evograd": (mtl.metagrad.EvoGrad(copies=3), 7 + 3, 0, {"rate"}),
    "shot": (mtl.metagrad.SHOT(), 7 + 1, 7 + 1, set()),
    "shot(3)": (mtl.metagrad.SHOT(window=3), 7 + 3, 7 + 3, set()),
}


INEXACT = APPROXIMATE | OTHER


NEAR = EXACT | {k: v[0] for k, v in APPROXIMATE.items()}


ALL = NEAR | {k: v[0] for k, v in OTHER.items()}


# Their direction is not of the outer loss alone.
MORE_THAN_THE_OUTER_LOSS = (mtl.metagrad.Reptile, mtl.metagrad.SHOT)


def error(found: dict, expected: dict) -> float:
    """Largest difference, relative to the largest entry of the expected tensor."""
    return max(
        ((found[k] - v).abs().max() / v.abs().max().clamp_min(1e-300)).item()
        if v.abs().max()
        else found[k].abs().max().item()
        for k, v in expected.items()
    )


def cosine(found: dict, expected: dict, key: str) -> float:
    return torch.cosine_similarity(found[key].flatten(), expected[key].flatten(), dim=0).item()


def unrolled(problem: InnerProblem, meta: dict, gradient_of=None) -> dict:
    """The reference, written as plainly as possible and sharing no code with the library's sweep."""
    meta = {k: v.clone().requires_grad_() for k, v in meta.items()}
    w = {k: v.clone() for k, v in problem.init(meta).items()}
    w = {k: v if v.requires_grad else v.requires_grad_() for k, v in w.items()}
    rule, buffer, square, seen = (
        problem.optimizer,
        *({k: torch.zeros_like(v) for k, v in w.items()} for _ in range(2)),
        0,
    )
    if isinstance(rule, InnerAdam) and rule.start:
        begun = rule.start(meta)
        buffer, square = ({k: begun[f"{name}.{k}"].expand_as(v) for k, v in w.items()} for name in "mv")
        seen = begun["step"].item()
    lr = rule.lr(meta) if callable(rule.lr) else rule.lr
    for step in range(problem.num_steps):
        gradient = (gradient_of or plain_gradient)(problem, w, meta, step)
        if getattr(rule, "clip", None):
            whole = torch.cat([g.flatten(1) for g in gradient.values()], 1)
            shorter = [rule.clip / n if (n := row.norm()) > rule.clip else torch.ones_like(n) for row in whole]
            gradient = {k: torch.stack(shorter).view(-1, *[1] * (g.dim() - 1)) * g for k, g in gradient.items()}
        for k in w:
            if isinstance(rule, InnerAdam):
                (b1, b2), t = rule.betas, seen + step + 1
                buffer[k] = b1 * buffer[k] + (1 - b1) * gradient[k]
                square[k] = b2 * square[k] + (1 - b2) * gradient[k] ** 2
                root = (square[k] / (1 - b2**t) + 1e-300).sqrt()
                w[k] = w[k] - lr * buffer[k] / (1 - b1**t) / (root + rule.eps)
            elif isinstance(rule, InnerNormalised):
                rows = [normalised(rule, *row) for row in zip(w[k], gradient[k], strict=True)]
                buffer[k] = rule.momentum * buffer[k] + lr * torch.stack(rows)
                w[k] = w[k] - buffer[k]
            else:
                buffer[k] = rule.momentum * buffer[k] + gradient[k] + rule.weight_decay * w[k]
                w[k] = w[k] - lr * buffer[k]
    loss = problem.outer_loss(w, meta).mean()
    found = torch.autograd.grad(loss, list(meta.values()), allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(meta.items(), found, strict=True)}


def normalised(rule: InnerNormalised, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The direction of one tensor of one task."""
    if not w.any() and not g.any():
        return torch.zeros_like(g)
    length = g.norm() + rule.eps + (rule.weight_decay * w.norm() if rule.weight_decay else 0)
    return (g + rule.weight_decay * w) / length * (w.norm() if rule.relative and w.any() else 1)


def plain_gradient(problem, w, meta, step):
    loss = problem.inner_loss(w, meta, step).sum()
    found = torch.autograd.grad(loss, list(w.values()), create_graph=True, allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(w.items(), found, strict=True)}


def counting(problem: InnerProblem) -> tuple[InnerProblem, list[int]]:
    """The problem, and the steps at which its inner loss was evaluated."""
    calls: list[int] = []

    def counted(weights, meta, step):
        calls.append(step)
        return problem.inner_loss(weights, meta, step)

    return replace(problem, inner_loss=counted), calls
