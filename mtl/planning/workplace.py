"""The real learner on tensors without values: where costs are counted before there is a device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl.episode import Episode, Examples, RawInputs
from mtl.fewshot.generators import Static
from mtl.fewshot.learner import MetaLearner
from mtl.metagrad.estimators import AbstractEstimator, Exact
from mtl.metagrad.products import as_pull
from mtl.networks.backbones import HFText
from mtl.planning.choices import Keeping
from mtl.planning.config import Config
from mtl.planning.measuring import Arithmetic, arithmetic, beginning, memory, pull_arithmetic, standing_bytes
from mtl.planning.networks import Mode, backbone_in, moved


class Workplace:
    """A learner and an episode for it, made for counting.

    Args:
        config: of which sizes.
        mode: where its tensors live; fake ones unless given.

    Raises:
        ValueError: a network or a size that does not exist.
    """

    def __init__(self, config: Config, mode: Mode | None = None) -> None:
        self.config, self.mode = config, mode or FakeTensorMode()
        stored = {"dtype": "bfloat16"} if config.precision == "bf16-stored" else {}
        self.backbone = backbone_in(
            config.backbone, self.mode, sites=config.sites, last_k=config.last_k, image_size=config.image_size, **stored
        )
        self.backbone.precision = torch.bfloat16 if config.precision == "bf16" else None
        # The one generator without an autocast region, which the meta device has none of. Others add a few MB.
        self.generator = moved(Static(self.backbone.sites, self.backbone.width), self.mode)
        with self.mode:
            self.episode = Episode(self._examples(config.shots), self._examples(config.queries), config.ways)
            self._begun = beginning(self.learner(0, Exact()), self.episode)
        self.standing = standing_bytes(self.learner(0, Exact()), self.episode)

    @property
    def blocks(self) -> int:
        """How many blocks are modulated."""
        return len({s.block for s in self.backbone.sites if s.block})

    def learner(self, steps: int, estimator: AbstractEstimator) -> MetaLearner:
        return MetaLearner(self.backbone, self.generator, inner_steps=steps, estimator=estimator)

    def peak(self, estimator: AbstractEstimator, keeping: Keeping, steps: int) -> tuple[int, int]:
        """Bytes for ``steps`` inner steps, and for one more, with everything that is there all the time.

        One step is run, and two where memory grows with them: from there on it does so evenly.
        """
        keeping.apply(self.backbone)
        with self.mode:
            found = memory(self.learner(1, estimator), self.episode)
            slope = found.per_step
            if isinstance(estimator, Exact):
                slope = memory(self.learner(2, estimator), self.episode).peak - found.peak
        return self.standing + found.peak + (steps - 1) * slope, slope

    def measured(self, estimator: AbstractEstimator, keeping: Keeping, steps: int) -> int:
        """The same bytes, with all the steps really taken."""
        keeping.apply(self.backbone)
        with self.mode:
            return self.standing + memory(self.learner(steps, estimator), self.episode).peak

    def arithmetic(self, keeping: Keeping) -> Arithmetic:
        """Operations of an estimator's parts, but for pulls."""
        keeping.apply(self.backbone)
        with self.mode:
            return arithmetic(self.learner(0, Exact()), self.episode, self._begun)

    def pull_arithmetic(self, keeping: Keeping, pull: str) -> tuple[int, int]:
        """Operations of linearising at an anchor, and of one product there."""
        keeping.apply(self.backbone)
        with self.mode:
            return pull_arithmetic(self._begun, as_pull(pull))

    def _examples(self, per_class: int) -> Examples:
        shape = (self.config.tasks_per_chunk, self.config.ways * per_class)
        return Examples(self._inputs(*shape), torch.arange(self.config.ways).repeat(shape[0], per_class))

    def _inputs(self, *shape: int) -> RawInputs:
        adapter = self.backbone.adapter
        if isinstance(example := adapter.example(1), Tensor):
            return torch.randn(*shape, *example.shape[1:])
        assert isinstance(adapter, HFText)
        length = self.config.text_length
        if adapter.max_length is not None and length > adapter.max_length:
            raise ValueError(f"text_length={length}: {self.config.backbone} reads at most {adapter.max_length} tokens")
        mask = torch.ones(*shape, length, dtype=torch.long)
        mask[0, 0, -1:] = 0  # a text that is shorter than the others: without one there would be no mask inside
        return {"input_ids": torch.randint(adapter.vocabulary, (*shape, length)), "attention_mask": mask}
