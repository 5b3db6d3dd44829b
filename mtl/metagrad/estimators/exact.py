"""Exact meta-gradient by automatic differentiation through the unrolled inner loop: the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtl.metagrad import tensors
from mtl.metagrad.compiling import not_compiled
from mtl.metagrad.estimators.base import AbstractEstimator
from mtl.metagrad.problem import InnerProblem, draw, replaying
from mtl.metagrad.products import require_double_backward, twice_differentiable
from mtl.metagrad.sweep import MetaGradient
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class Exact(AbstractEstimator):
    """Differentiate through all K stored steps (MAML, arXiv 1703.03400).

    Cost: K gradients with graph and one backward through them; memory grows linearly in K.
    Equals: the definition. Use it to check the others, or when K is small and memory is plenty.

    Raises:
        RuntimeError: when an operation of the network has no second derivative, or the network runs in float16.
    """

    @not_compiled
    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        problem.execution.require_second_order()
        if problem.execution.loss_scale is not None:
            raise RuntimeError(
                "Exact() cannot keep float16 from underflowing between its steps; Rematerialised(budget=math.inf) is "
                "the same gradient at the same speed, and can"
            )
        phi = tensors.leaf(meta)
        with torch.enable_grad(), twice_differentiable():
            # New nodes: where init derives one weight from another, the gradient of one step must not run through both.
            weights = {k: v.clone() for k, v in problem.init(phi).items()}
            weights = {k: v if v.requires_grad else v.requires_grad_() for k, v in weights.items()}
            state = problem.optimizer.init(weights)
            for step in range(problem.num_steps):
                drawn = {step: draw(problem, weights, phi, step)}
                losses = replaying(problem, drawn).inner_loss(weights, phi, step)
                (gradient,) = tensors.grad(losses.sum(), weights, create_graph=True)
                if step == 0:
                    require_double_backward(gradient)
                weights, state = problem.optimizer.update(weights, state, gradient, phi)
            losses = problem.outer_loss(weights, phi)
            (grads,) = tensors.grad(losses.mean(), phi)
        return MetaGradient(losses.detach(), grads, tensors.detach(weights), problem.num_steps, problem.num_steps)
