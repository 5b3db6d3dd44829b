"""Own classes train, validate, save, load and resume like the built-in ones, or are refused before step one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distance, records, state
from tiny import Blobs, backbone
from torch import Tensor, nn

import mtl
from mtl.fewshot import GENERATORS, HEADS, AbstractGenerator, AbstractHead
from mtl.fewshot.heads import class_means
from mtl.metagrad import INNER_OPTIMIZERS, AbstractEstimator, AbstractInnerOptimizer, MetaGradient
from mtl.networks.modulation import Modulation
from mtl.tools.identity import identity_of

CONFIG = mtl.TrainingConfig(steps=4, tasks_per_step=2, warmup=1, validate_every=2, validation_tasks=2, save_every=1)


@dataclass(frozen=True)
class Warm(AbstractHead):
    """Distances to class means, times an adapted temperature: a scalar per task, and the support set at prediction."""

    start: float = 0.5

    def init(self, features: Tensor, labels: Tensor, ways: int) -> dict[str, Tensor]:
        return {"head.temperature": features.new_full(features.shape[:1], self.start), "offset": features[:, 0] * 0}

    def logits(self, features: Tensor, weights: dict[str, Tensor], support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        means = class_means(support[0] + weights["offset"].unsqueeze(1), support[1], ways)
        return -weights["head.temperature"].view(-1, 1, 1) * torch.cdist(features, means)

    def support_logits(self, weights: dict[str, Tensor], support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        return self.logits(support[0], weights, support, ways)

    def as_linear(self, weights: dict[str, Tensor], support: tuple[Tensor, Tensor], ways: int) -> None:
        return None


class Angle(AbstractGenerator):
    """One fast weight per task, which turns every scale and shift the same way."""

    def __init__(self, sites: Any, width: int, step_size: float = 0.1, names: tuple[str, ...] = ("a", "b")) -> None:
        super().__init__(sites, width, step_size, names=names)
        self.direction = nn.ParameterDict({n: nn.Parameter(0.1 * torch.randn(self.modulation_width)) for n in names})

    @property
    def adapted_values(self) -> int:
        return 1

    def forward(self, view: mtl.fewshot.SupportView) -> dict[str, Tensor]:
        a, b = self.direction.values()
        return {"angle": view.features.mean((1, 2)).unsqueeze(1), "a": a, "b": b, "log_lr": self.step_sizes_of.log_lr}

    def init(self, meta: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"angle": meta["angle"]}

    def modulation(self, weights: dict[str, Tensor], meta: dict[str, Tensor]) -> Modulation:
        return Modulation(1 + weights["angle"].sin() * meta["a"], weights["angle"] * meta["b"])

    def step_sizes(self, meta: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        _, _, shared = self.step_sizes_of.split(meta["log_lr"])
        return {"angle": 0.5 * shared}, shared

    def identity(self, meta: dict[str, Tensor]) -> dict[str, Tensor]:
        return meta | {"angle": torch.zeros_like(meta["angle"])}


@dataclass(frozen=True)
class SignDescent(AbstractInnerOptimizer):
    """Gradient descent on a smooth sign of the gradient."""

    lr: Any = 0.1
    softness: float = 0.1

    def init(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def update(self, weights: Any, state: Any, gradient: Any, meta: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        lr = self.lr(meta)
        return {k: v - lr[k] * torch.tanh(gradient[k] / self.softness) for k, v in weights.items()}, state


@dataclass(frozen=True)
class Halved(AbstractEstimator):
    """Half of what another estimator finds."""

    inner: AbstractEstimator = field(default_factory=mtl.Rematerialised)

    def __call__(self, problem: mtl.InnerProblem, meta: dict[str, Tensor]) -> MetaGradient:
        found = self.inner(problem, meta)
        return replace(found, grads={k: 0.5 * v for k, v in found.grads.items()})


class Stripes:
    """A source of its own: the rows or the columns of an image are bright."""

    def sample(self, index: int) -> mtl.Episode:
        g = torch.Generator().manual_seed(index)
        labels = torch.tensor([[0, 1, 0, 1]])
        stripes = torch.arange(16).remainder(2).float().expand(16, 16)

        def examples() -> mtl.Examples:
            images = [stripes if y else stripes.T for y in labels[0].tolist()]
            return mtl.Examples(torch.stack(images)[None, :, None] + torch.randn(1, 4, 1, 16, 16, generator=g), labels)

        return mtl.Episode(examples(), examples(), 2)


OWN = ((HEADS, Warm), (GENERATORS, Angle), (INNER_OPTIMIZERS, SignDescent))


@pytest.fixture
def registered() -> Iterator[None]:
    """The classes have names for the time of a test; other tests go through the tables of built-in ones."""
    for table, cls in OWN:
        table.register(cls.__name__.lower(), cls)
    yield
    for table, cls in OWN:
        del table[cls.__name__.lower()]


PARTS = ["head", "generator", "optimizer", "estimator", "source", "all"]


def make(part: str = "", **parts: Any) -> mtl.MetaLearner:
    """A learner with one part of its own, or with several."""
    torch.manual_seed(0)
    b = backbone()
    generator = Angle if part in ("generator", "all") else mtl.SupportConditioned
    own: dict[str, Any] = {"head": Warm(0.3), "optimizer": SignDescent(softness=0.2), "estimator": Halved()}
    own = {k: v for k, v in own.items() if part in (k, "all")} | parts
    return mtl.MetaLearner(b, own.pop("generator", generator)(b.sites, b.width), inner_steps=2, **own)


class MachineGone(Exception):
    """The end of a run that is to be continued."""


@dataclass(frozen=True)
class Until:
    """A source that ends early."""

    source: mtl.TaskSource
    end: int

    def identity(self) -> dict[str, Any]:
        return identity_of(self.source, (0, 1))

    def sample(self, index: int) -> mtl.Episode:
        if index >= self.end:
            raise MachineGone
        return self.source.sample(index)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("part", PARTS)
def test_it_trains_validates_saves_loads_and_resumes(part: str, tmp_path: Path):
    source = Stripes() if part in ("source", "all") else Blobs()
    begun = {k: v.clone() for k, v in make(part).generator.state_dict().items()}
    best = mtl.train(make(part), source, source, CONFIG, tmp_path / "whole")
    assert distance(state(tmp_path / "whole"), begun) > 1e-4
    assert sum("validation_accuracy" in r for r in records(tmp_path / "whole")) == 2

    again, query = mtl.from_pretrained(tmp_path / "whole" / "best"), source.sample(9).query.inputs
    support = source.sample(9).support
    assert torch.equal(again.adapt(support).logits(query), best.adapt(support).logits(query))
    assert (type(again.head), type(again.generator)) == (type(best.head), type(best.generator))

    with pytest.raises(MachineGone):
        mtl.train(make(part), Until(source, 4), source, CONFIG, tmp_path / "resumed")
    mtl.train(make(part), source, source, CONFIG, tmp_path / "resumed")
    assert distance(state(tmp_path / "resumed"), state(tmp_path / "whole")) == 0


@pytest.mark.usefixtures("registered")
def test_options_are_saved(tmp_path: Path):
    mtl.save_pretrained(make("all"), tmp_path / "saved", {"step": 3})
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["generator"] == {"kind": "angle", "options": {"step_size": 0.1, "names": ["a", "b"]}}
    assert config["head"] == {"kind": "warm", "options": {"start": 0.3}}
    assert config["inner"] == {"inner_steps": 2, "optimizer": {"kind": "signdescent", "options": {"softness": 0.2}}}
    assert config["extra"] == {"step": 3}
    again = mtl.from_pretrained(tmp_path / "saved")
    assert (again.head, again.generator.options) == (Warm(0.3), {"step_size": 0.1, "names": ["a", "b"]})


@pytest.mark.usefixtures("registered")
def test_a_folder_of_the_built_in_classes_keeps_its_format(tmp_path: Path):
    """Saved learners of other versions load as long as names and options stay as they are here."""
    b = backbone()
    made = mtl.MetaLearner(b, mtl.TaskCode(b.sites, b.width, size=7), mtl.Ridge(), optimizer=mtl.InnerAdam())
    mtl.save_pretrained(made, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config.keys() == {"mtl", "backbone", "generator", "head", "inner", "extra", "sha256", "digest"}
    assert config["generator"] == {"kind": "code", "options": {"step_size": 0.1, "size": 7}}
    assert config["head"] == {"kind": "ridge", "options": {"l2": 1.0, "scale": 10.0}}
    options = {"betas": [0.9, 0.999], "eps": 1e-8}
    assert config["inner"] == {"inner_steps": 5, "optimizer": {"kind": "adam", "options": options}}
    assert {"channelwise", "dense", "static", "code"} <= GENERATORS.keys()
    assert {"cosine", "linear", "ncm", "ridge"} <= HEADS.keys()
    assert {k: len(v) for k, v in made.generator.state_dict().items() if k.endswith("log_lr")} == {
        "step_sizes_of.log_lr": 2 * len(made.generator.widths) + 1
    }


@pytest.mark.usefixtures("registered")
def test_controls_and_counts_ask_the_generator_and_the_head():
    learner = make("all")
    found = mtl.evaluate(mtl.fewshot.controls(learner), Blobs(), episodes=2, progress=False)
    assert {row.adapted_values for row in found.rows} == {1 + 1 + learner.backbone.width}
    adapted = learner.adapt(Blobs().sample(0).support)
    assert adapted.adapted_values == learner.model.adapted_values(3)
    meta = learner.generator.identity(adapted.meta)
    modulation = learner.generator.modulation(learner.generator.init(meta), meta)
    assert (modulation.scale == 1).all()
    assert (modulation.shift == 0).all()
    with pytest.raises(ValueError, match="no linear classifier predicts the same as a Warm head"):
        adapted.merge()


# --- refused before the first step ------------------------------------------------------------------------------------


class Forgetful(Angle):
    """It does not tell its base class what it was made with."""

    def __init__(self, sites: Any, width: int, names: tuple[str, ...] = ("c", "d")) -> None:
        super().__init__(sites, width, names=names)
        self.options = {"step_size": 0.1}


class Opaque(Halved):
    """An estimator that no two processes print alike."""

    __repr__ = object.__repr__


@dataclass(frozen=True)
class Unjson(Warm):
    other: Any = torch.float32


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"head": Warm()}, r"Warm .*mtl\.fewshot\.HEADS\.register\('warm', Warm\)"),
        ({"generator": Angle}, r"Angle .*mtl\.fewshot\.GENERATORS\.register\('angle', Angle\)"),
        ({"optimizer": SignDescent()}, r"mtl\.metagrad\.INNER_OPTIMIZERS\.register\('signdescent', SignDescent\)"),
        ({"estimator": Opaque()}, r"estimator .*Opaque object at .* could not be recognised.*dataclass"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_first_step(parts: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        mtl.train(make(**parts), Until(Blobs(), 0), Blobs(), CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("table", "part", "own", "message"),
    [
        (GENERATORS, "generator", Forgetful, r"cannot be built again|pass every argument of its __init__"),
        (HEADS, "head", Unjson, r"options of Unjson do not fit into JSON"),
    ],
)
def test_what_cannot_be_built_again_is_refused_before_the_first_step(
    table: Any, part: str, own: type, message: str, tmp_path: Path
):
    table.register("own", own)
    try:
        learner = make(**{part: own if part == "generator" else own()})
        with pytest.raises(ValueError, match=message):
            mtl.train(learner, Until(Blobs(), 0), Blobs(), CONFIG, tmp_path / "run")
    finally:
        del table["own"]


def test_an_inner_optimiser_needs_a_field_for_the_step_sizes():
    class Fixed(AbstractInnerOptimizer):
        init = update = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"Fixed cannot be the inner optimiser.*dataclass with a field lr"):
        make(optimizer=Fixed())


def test_a_head_without_a_task_axis_is_refused():
    class Flat(Warm):
        def init(self, features: Tensor, labels: Tensor, ways: int) -> dict[str, Tensor]:
            return {"scale": torch.ones(())}

    with pytest.raises(ValueError, match=r"Flat\.init gives 'scale' the shape \(\) for one task: expected a leading"):
        make(head=Flat())


@pytest.mark.usefixtures("registered")
def test_an_unknown_name_says_how_to_register_it(tmp_path: Path):
    mtl.save_pretrained(make("head"), tmp_path / "saved")
    del HEADS["warm"]
    with pytest.raises(ValueError, match=r"unknown head 'warm': .*HEADS\.register\('warm', YourClass\)"):
        mtl.from_pretrained(tmp_path / "saved")
    HEADS.register("warm", Warm)
