"""What a generator is: it reads a support set and emits the meta-parameters of the inner problem."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mtl.fewshot.generators.standardising import Standardisation
from mtl.fewshot.statistics import FeatureStatistics
from mtl.metagrad.optimizers import AbstractInnerOptimizer, InnerSGD
from mtl.metagrad.registry import Registry
from mtl.metagrad.tensors import Tensors
from mtl.networks import Level
from mtl.networks.modulation import Modulation, Site
from mtl.tools.identity import digest

Learn = Literal["all", "rates"]
GENERATORS = Registry("generator", "mtl.fewshot.GENERATORS")
"""Generators by the names that saved learners hold; add your own with ``GENERATORS.register``."""


@dataclass(frozen=True)
class SupportView:
    """All that a generator sees of a batch of tasks: the support set through the frozen backbone.

    Args:
        features: pooled features, ``(tasks, n, width)``.
        activations: for every site the mean over positions of its activation, ``(tasks, n, site width)``.
        labels: ``(tasks, n)``.
        ways: number of classes.
        standard: statistics of each task that standardise its features, see :meth:`Standardisation.of_support`; those
            of the generator where there are none.
    """

    features: Tensor
    activations: Sequence[Tensor]
    labels: Tensor
    ways: int
    standard: Tensors = field(default_factory=dict)

    def regroup(self, examples: Tensor) -> SupportView:
        """Parts of the tasks as tasks of their own, such as folds; each keeps the statistics of its task.

        Args:
            examples: ``(tasks * parts, n)``, those of one task after another; indices among the examples of all tasks.
        """
        part = lambda v: v.flatten(0, 1)[examples]  # noqa: E731
        parts = len(examples) // len(self.labels)
        standard = {k: v.repeat_interleave(parts, 0) for k, v in self.standard.items()}
        activations = [part(a) for a in self.activations]
        return SupportView(part(self.features), activations, part(self.labels), self.ways, standard)


class AbstractGenerator(nn.Module, abc.ABC):
    """Emits ``meta``: everything that the inner problem takes from the generator, step sizes included.

    Scale and shift cover the backbone's sites in order and, behind them, the pooled features themselves (a last site,
    which a linear classifier absorbs when the model is exported).

    Args:
        sites: the backbone's sites.
        width: width of the pooled features.
        step_size: initial inner step size, > 0.
        levels: of the features, where the implementation reads them; one by default.
        options: the other arguments of the implementation, which JSON must be able to hold. A saved generator is built
            again as ``make_generator(type(generator), backbone, **options)``. ``standard="support"`` standardises
            features by each task's support set, see :class:`Standardisation`.

    Attributes:
        given: a digest of the weights that were last loaded into it; None while it has its own random ones.
        source: ``"user/name@<commit>"`` where these weights came from the hub; else empty.

    Raises:
        ValueError: when the levels are not as wide as the features, or a number is outside its range.
    """

    reads_levels: ClassVar[bool] = False
    """Whether the class takes ``levels=``, the levels of the features, when it is built."""

    of_support: ClassVar[frozenset[str]] = frozenset()
    """Names in ``meta`` of what is true of the support examples alone, and which the inner loop does without. Whoever
    adapts other examples from this ``meta`` leaves them out."""

    of_loop: ClassVar[tuple[str, ...]] = ("step_sizes_of.",)
    """How the names of those weights begin that nothing but an inner loop needs, see :meth:`learn`."""

    inner_steps: ClassVar[int | None] = None
    """Inner steps by default; None: 0 where nothing is modulated inside the network, else 5."""

    def __init__(
        self, sites: Sequence[Site], width: int, step_size: float, *, levels: Sequence[Level] = (), **options: Any
    ) -> None:
        super().__init__()
        if not 0 < step_size < math.inf:
            raise ValueError(f"{type(self).__name__}(step_size={step_size}): expected a positive, finite number")
        for size in options.keys() & {"hidden", "size"}:
            if options[size] < 1:
                raise ValueError(f"{type(self).__name__}({size}={options[size]}): expected at least 1")
        self.options: dict[str, Any] = {"step_size": step_size, **options}
        self.widths = (*(s.width for s in sites), width)
        self.levels = tuple(levels) or (Level("own", "own", 0, 1.0, width),)
        if (found := sum(level.width for level in self.levels)) != width:
            raise ValueError(f"the levels are {found} wide together, but the features {width}; use make_generator")
        self.step_sizes_of = StepSizes(self.widths, step_size)
        widths = [level.width for level in self.levels]
        even = options.get("even")
        even = len(widths) > 1 if even is None else even
        self.standard = Standardisation(widths, options.get("standard", "fixed"), even)
        self.given: str | None = None
        self.source = ""

    def learn(self, what: Learn) -> None:
        """Train all weights, or with ``"rates"`` those of the inner loop alone: step sizes, and what comes with them.

        What the generator emits else is then what it is, and the loop starts there.
        """
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(what == "all" or name.startswith(self.of_loop))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, and note in :attr:`given` which they were: a run that begins with others is another run."""
        found = super().load_state_dict(state_dict, strict, assign)
        self.given, self.source = digest(dict(self.state_dict())), ""
        return found

    def standardise(self, statistics: FeatureStatistics) -> None:
        """Standardise features by these statistics, which are saved with the generator.

        Scale and shift of the features are relative to standardised ones from now on.
        """
        self.standard.set(statistics)
        if "standard" in self.options:
            self.options["standard"] = "fixed"

    @property
    def reads_out(self) -> bool:
        """Whether the features are a readout: of several levels, or of a network in which nothing is modulated."""
        return len(self.levels) > 1 or len(self.widths) == 1

    def logit_scale(self, meta: Tensors) -> Tensor | None:
        """Factor on the logits of each task, one number or ``(tasks,)``; None is one."""
        return meta["log_logit_scale"].exp() if "log_logit_scale" in meta else None

    @property
    def modulation_width(self) -> int:
        """Channels over all sites and the pooled features."""
        return sum(self.widths)

    def optimizer(self) -> AbstractInnerOptimizer:
        """The inner optimiser by default."""
        return InnerSGD()

    @property
    @abc.abstractmethod
    def adapted_values(self) -> int:
        """Numbers in the generator's fast weights, per task."""

    @abc.abstractmethod
    def forward(self, view: SupportView) -> Tensors:
        """``meta`` for every task of the view.

        It holds ``log_lr``, the logarithms of the step sizes: ``self.step_sizes_of.log_lr``, or a row of that length
        for each task.
        """

    def for_training(self, view: SupportView) -> Tensors:
        """``meta`` for an outer step; some generators leave out a part of it in some tasks, to train the rest."""
        return self(view)

    def of_task(self, meta: Tensors, task: int, tasks: int) -> Tensors:
        """The ``meta`` of one of the tasks that it was emitted for, copied, with a task axis of one.

        What has no task axis is common to all tasks. By default that is ``log_lr`` with a single axis, and whatever
        else is not as long as there are tasks.
        """
        own = lambda k, v: v.dim() > (k == "log_lr") and len(v) == tasks  # noqa: E731
        return {k: v[task : task + 1].clone() if own(k, v) else v for k, v in meta.items()}

    @abc.abstractmethod
    def init(self, meta: Tensors) -> Tensors:
        """The generator's initial fast weights, each with a leading task axis."""

    @abc.abstractmethod
    def modulation(self, weights: Tensors, meta: Tensors) -> Modulation:
        """Scale and shift ``(tasks, modulation_width)`` that the fast weights stand for, of raw features.

        ``self.standard.fold`` turns scale and shift of standardised features into these.
        """

    def support_kernel(self, weights: Tensors, meta: Tensors) -> Tensor | None:
        """Inner products of the modulated, centred support features over their width, ``(tasks, n, n)``.

        None, as by default, where they are not at hand without the features. Heads that need no more, see
        :attr:`AbstractHead.reads_kernel`, then take an inner step without a pass over features.
        """
        return None

    @abc.abstractmethod
    def step_sizes(self, meta: Tensors) -> tuple[Tensors, Tensor]:
        """Positive inner step sizes, see :meth:`StepSizes.split`.

        Returns:
            One for each of the generator's fast weights, broadcastable to it; and one for all fast weights of the head,
            ``(1,)`` or ``(tasks, 1)``.
        """

    @abc.abstractmethod
    def identity(self, meta: Tensors) -> Tensors:
        """The same ``meta``, changed so that the modulation of standardised features is scale one and shift zero."""

    def candidates(self, meta: Tensors) -> dict[str, Tensors]:
        """What cross-validation inside the support set chooses from, the plainest first and ``meta`` itself last.

        Of generators that emit scale and shift of every site, :mod:`mtl.fewshot.choosing` knows more.
        """
        return {"plain": self.identity(meta), "generator": meta}


class AbstractSiteGenerator(AbstractGenerator):
    """A generator whose fast weights are the scale and the shift of every site, as emitted.

    Those of the features are relative to standardised features.
    """

    @property
    def adapted_values(self) -> int:
        return 2 * self.modulation_width

    def init(self, meta: Tensors) -> Tensors:
        return {"scale": meta["scale"], "shift": meta["shift"]}

    def modulation(self, weights: Tensors, meta: Tensors) -> Modulation:
        return self.standard.fold(Modulation(weights["scale"], weights["shift"]), meta)

    def step_sizes(self, meta: Tensors) -> tuple[Tensors, Tensor]:
        scale, shift, head = self.step_sizes_of.split(meta["log_lr"])
        return {"scale": scale, "shift": shift}, head

    def identity(self, meta: Tensors) -> Tensors:
        return meta | {"scale": torch.ones_like(meta["scale"]), "shift": torch.zeros_like(meta["shift"])}

    def rule(self, meta: Tensors) -> Tensors | None:
        """The same ``meta`` without what is common to all tasks, where both are apart; None where not."""
        del meta
        return None

    def by_evidence(self, meta: Tensors) -> Tensor | None:
        """Factors on scales that let each level count by how well it alone answers support examples that it was not
        fitted to, ``(tasks, channels)``; None where the features have one level, or this was not read."""
        del meta
        return None

    def static(self, meta: Tensors) -> Tensors | None:
        """The same ``meta`` with what is common to all tasks alone, where there is such a part; None where not."""
        del meta
        return None


class StepSizes(nn.Module):
    """Learned inner step sizes: for scale and shift of every site, and one for all other fast weights (the head's).

    The idea of MAML++ (arXiv 1810.09502). Kept as logarithms, so that they stay positive and one outer step size suits
    all of them.
    """

    site: Tensor

    def __init__(self, widths: Sequence[int], initial: float) -> None:
        super().__init__()
        self.sites = len(widths)
        self.log_lr = nn.Parameter(torch.full((2 * self.sites + 1,), initial).log())
        site = torch.repeat_interleave(torch.arange(self.sites), torch.tensor(widths))
        self.register_buffer("site", site, persistent=False)

    def split(self, log_lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes of the scales and shifts ``(..., channels)``, and of all other fast weights ``(..., 1)``.

        Args:
            log_lr: ``(2 sites + 1,)`` for all tasks, or ``(tasks, 2 sites + 1)``.
        """
        scale, shift, other = log_lr.exp().split([self.sites, self.sites, 1], dim=-1)
        return scale[..., self.site], shift[..., self.site], other
