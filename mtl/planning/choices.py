"""What there is to choose from: estimators, pulls, and what of a forward pass is kept for its backward."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.metagrad.estimators import AbstractEstimator, Exact, FirstOrder, Rematerialised
from mtl.networks.backbones import Backbone
from mtl.planning.config import Config
from mtl.planning.work import takes_pull

UNROLLED = "exact"
"""The reference: automatic differentiation of the unrolled loop, MAML as it is usually written."""


def representative(estimator: AbstractEstimator, pull: str) -> AbstractEstimator:
    """The estimator that is run in its place, for its peak memory is the same and it reads no numbers.

    All that sweep back hold one step's graph at a time, whatever they do with what it gives. Unrolling and the
    estimators without second derivatives stand for themselves.
    """
    if takes_pull(estimator):
        return Rematerialised(pull)
    return estimator if isinstance(estimator, Exact) else FirstOrder()


@dataclass(frozen=True)
class Keeping:
    """What is kept of a forward pass.

    Args:
        name: in tables.
        checkpoint_blocks: see :attr:`mtl.Backbone.checkpoint_blocks`.
        examples_per_chunk: see :attr:`mtl.Backbone.examples_per_chunk`.
    """

    name: str
    checkpoint_blocks: bool = False
    examples_per_chunk: int | None = None

    def apply(self, backbone: Backbone) -> None:
        """Have the backbone do so from now on."""
        backbone.checkpoint_blocks = self.checkpoint_blocks
        backbone.examples_per_chunk = self.examples_per_chunk


def keepings(config: Config) -> tuple[Keeping, ...]:
    """What a plan compares; micro-batches, slow to predict, only where their size is given."""
    size = config.examples_per_chunk
    few = () if size is None else (Keeping(f"micro-batches of {size}", examples_per_chunk=size),)
    return (Keeping("everything"), Keeping("block inputs", checkpoint_blocks=True), *few)
