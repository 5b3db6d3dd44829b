"""The search space: estimators, pulls, and the activations that a forward pass stores for its backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.metagrad.estimators import AbstractEstimator, Exact, FirstOrder, Rematerialised
from mtl.networks.backbones import Backbone
from mtl.planning.options import PlanOptions
from mtl.planning.work import takes_pull

UNROLLED = "exact"
"""The reference: differentiate through the unrolled inner loop, as MAML usually does."""


def representative(estimator: AbstractEstimator, pull: str) -> AbstractEstimator:
    """An estimator with the same peak memory that runs on tensors without values.

    All backward sweeps hold the graph of one step at a time, whatever they do with its products. Unrolling represents
    itself, and ``FirstOrder`` the estimators without second derivatives.
    """
    if takes_pull(estimator):
        return Rematerialised(pull)
    return estimator if isinstance(estimator, Exact) else FirstOrder()


@dataclass(frozen=True)
class Activations:
    """Activations that a forward pass stores for its backward pass.

    Args:
        name: in tables.
        checkpoint_blocks: see :class:`mtl.networks.ForwardOptions`.
        examples_per_chunk: see :class:`mtl.networks.ForwardOptions`.
    """

    name: str
    checkpoint_blocks: bool = False
    examples_per_chunk: int | None = None

    def apply(self, backbone: Backbone) -> None:
        """Configure the backbone."""
        backbone.configure(checkpoint_blocks=self.checkpoint_blocks, examples_per_chunk=self.examples_per_chunk)


def activation_options(options: PlanOptions) -> tuple[Activations, ...]:
    """The choices that a plan compares; micro-batches, slow to predict, only if their size is given."""
    size = options.examples_per_chunk
    few = () if size is None else (Activations(f"micro-batches of {size}", examples_per_chunk=size),)
    return (Activations("everything"), Activations("block inputs", checkpoint_blocks=True), *few)
