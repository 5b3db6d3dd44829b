"""The real learner on tensors without values, to count its costs without a device."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl.episode import Episode, Examples, RawInputs
from mtl.fewshot.generators import Static
from mtl.fewshot.learner import MetaLearner
from mtl.metagrad.estimators import AbstractEstimator, FirstOrder
from mtl.networks.backbones import HFText
from mtl.planning.choices import Activations
from mtl.planning.hollow import Hollow
from mtl.planning.measuring import Trace, permanent_bytes, trace
from mtl.planning.networks import Mode, backbone_in, moved
from mtl.planning.options import PlanOptions


class Workbench:
    """A learner and an episode whose costs are counted.

    Args:
        options: network and sizes.
        mode: kind of tensors; by default those without values.

    Raises:
        ValueError: unknown network, or a size that it does not support.
    """

    def __init__(self, options: PlanOptions, mode: Mode | None = None) -> None:
        self.options, self.mode = options, mode or Hollow()
        stored = {"dtype": "bfloat16"} if options.precision == "bf16-stored" else {}
        self.backbone = backbone_in(
            options.backbone,
            self.mode,
            sites=options.sites,
            last_k=options.last_k,
            image_size=options.image_size,
            **stored,
        )
        self.backbone.configure(precision=torch.bfloat16 if options.precision == "bf16" else None)
        # The smallest generator; others add a few MB.
        self.generator = moved(Static(self.backbone.sites, self.backbone.width), self.mode)
        with self.mode:
            self.episode = Episode(self._examples(options.shots), self._examples(options.queries), options.ways)
            learner = self.learner(0, FirstOrder())
            learner.problem(self.episode)  # finds the frozen prefix, which would count otherwise
        self.permanent = permanent_bytes(learner, self.episode)

    @property
    def blocks(self) -> int:
        """Number of modulated blocks."""
        return len({s.block for s in self.backbone.sites if s.block})

    def learner(self, steps: int, estimator: AbstractEstimator) -> MetaLearner:
        return MetaLearner(self.backbone, self.generator, inner_steps=steps, estimator=estimator)

    def trace(self, estimator: AbstractEstimator, activations: Activations) -> Trace:
        """Run the estimator through one inner step and count."""
        activations.apply(self.backbone)
        with self.mode:
            return trace(self.learner(1, estimator), self.episode)

    def peak(self, estimator: AbstractEstimator, activations: Activations, steps: int) -> int:
        """Peak bytes for ``steps`` inner steps, permanent tensors included, predicted from one step."""
        return self.trace(estimator, activations).after(steps)

    def measured(self, estimator: AbstractEstimator, activations: Activations, steps: int) -> int:
        """The same peak, measured by running all steps."""
        activations.apply(self.backbone)
        with self.mode:
            return trace(self.learner(steps, estimator), self.episode).peak

    def _examples(self, per_class: int) -> Examples:
        shape = (self.options.tasks_per_chunk, self.options.ways * per_class)
        return Examples(self._inputs(*shape), torch.arange(self.options.ways).repeat(shape[0], per_class))

    def _inputs(self, *shape: int) -> RawInputs:
        adapter = self.backbone.adapter
        if isinstance(example := adapter.example(1), Tensor):
            return torch.randn(*shape, *example.shape[1:])
        assert isinstance(adapter, HFText)
        length = self.options.text_length
        if adapter.max_length is not None and length > adapter.max_length:
            raise ValueError(f"text_length={length}: {self.options.backbone} reads at most {adapter.max_length} tokens")
        mask = torch.ones(*shape, length, dtype=torch.long)
        mask[0, 0, -1:] = 0  # one shorter text, or the network would not need its mask
        return {"input_ids": torch.randint(adapter.vocabulary, (*shape, length)), "attention_mask": mask}
