"""Low precision of the frozen network: what the meta-gradient loses, and what float16 needs that it loses no more."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from estimator_tables import ALL
from gradients import agreement, flat
from networks import problem_of
from problems import regression
from tiny import Blobs, backbone

import mtl
from mtl.metagrad.execution import Execution

WIDE = {
    "vit": {
        "name": "vit_tiny_patch16_224",
        "img_size": 32,
        "patch_size": 8,
        "depth": 2,
        "embed_dim": 192,
        "num_heads": 3,
    },
    "bert": {
        "model_type": "bert",
        "hidden_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 384,
        "vocab_size": 200,
    },
}
FD = mtl.metagrad.FiniteDifference(0.1)
ESTIMATORS = {
    "default": mtl.Windowed(),
    "exact": mtl.Exact(),
    "rematerialised": mtl.Rematerialised(),
    "rematerialised, kept": mtl.Rematerialised(budget=math.inf),
    "rematerialised, forward": mtl.Rematerialised("forward-over-reverse"),
    "rematerialised, differences": mtl.Rematerialised(FD),
    "windowed, differences": mtl.Windowed(pull=FD),
    "lazy": mtl.Windowed(mode="lazy"),
    "truncated": mtl.metagrad.Truncated(2),
    "binomial": mtl.metagrad.Binomial(1),
    "horizon mixing": mtl.metagrad.HorizonMixing(),
    "truncation mixing": mtl.metagrad.TruncationMixing(),
    "first-order": mtl.FirstOrder(),
    "neumann": mtl.metagrad.Neumann(3),
    "imaml": mtl.metagrad.ImplicitMAML(iterations=3),
    "one-step": mtl.metagrad.OneStep(),
    "sama": mtl.metagrad.SAMA(pull=FD),
    "reptile": mtl.metagrad.Reptile(),
    "shot": mtl.metagrad.SHOT(),
}  # not EvoGrad: it keys its noise by a gradient, so other precision means other noise

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


@pytest.fixture(scope="module", params=WIDE)
def wide(request, tmp_path_factory) -> mtl.Backbone:
    options: dict[str, Any] = dict(WIDE[request.param])
    if request.param == "vit":
        return mtl.load_backbone(pretrained=False, **options)
    folder = tmp_path_factory.mktemp("bert")
    (folder / "config.json").write_text(json.dumps(options))
    return mtl.load_backbone(folder, pretrained=False)


@cache
def reference(network: mtl.Backbone, name: str) -> mtl.metagrad.MetaGradient:
    return ESTIMATORS[name](*problem_of(network))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_low_precision_keeps_the_meta_gradient(wide: mtl.Backbone, name: str, dtype: torch.dtype):
    estimator, expected = ESTIMATORS[name], reference(wide, name)
    wide.configure(precision=dtype)
    try:
        problem, meta = problem_of(wide)
        if name == "exact" and dtype == torch.float16:
            with pytest.raises(RuntimeError, match=r"float16.*Rematerialised\(budget=math.inf\)"):
                estimator(problem, meta)
            return
        found = estimator(problem, meta)
    finally:
        wide.configure(precision=None)
    everything = [*found.grads.values(), *found.weights.values(), found.losses]
    assert all(v.dtype == torch.float32 for v in everything), "what is adapted and what comes back stays in float32"
    cosine, norm = agreement(flat(found), flat(expected))
    assert cosine > 0.99
    assert norm == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", [name for name in ALL if name != "exact"])
def test_a_loss_scale_changes_no_digit_where_nothing_is_lost(name: str):
    problem, meta = regression(momentum=0.5)
    expected = ALL[name](problem, meta).grads
    scaled = replace(problem, execution=Execution(loss_scale=2.0**10))
    for key, value in ALL[name](scaled, meta).grads.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12)


def test_a_loss_scale_saves_what_float16_would_lose(wide: mtl.Backbone):
    def shrunk(execution: Execution) -> torch.Tensor:
        problem, meta = problem_of(wide, 2)
        small = replace(
            problem,
            inner_loss=lambda *args: 1e-5 * problem.inner_loss(*args),
            outer_loss=lambda *args: 1e-5 * problem.outer_loss(*args),
            execution=execution,
        )
        return flat(mtl.Rematerialised()(small, meta))

    expected = shrunk(Execution())
    wide.configure(precision=torch.float16)
    try:
        lost, saved = shrunk(Execution()), shrunk(Execution(loss_scale=2.0**14))
    finally:
        wide.configure(precision=None)
    assert agreement(saved, expected)[0] > 0.99
    assert agreement(lost, expected)[0] < 0.95


def test_a_loss_scale_that_overflows_is_lowered(tmp_path: Path):
    [(_, episode)] = mtl.stack_by_shape([Blobs().sample(i) for i in range(2)])
    learner = mtl.MetaLearner(b := backbone(), mtl.Static(b.sites, b.width, 0.05), inner_steps=2)
    b.configure(precision=torch.float16)
    expected = learner.adapt(episode.support).weights
    b.configure(loss_scale=2.0**30)
    found = learner.adapt(episode.support).weights
    assert b.execution.loss_scale == 2.0**30, "adapting changes nothing for those who come after"
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("asked", "dtype"), [("no", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_training_runs_the_network_in_the_precision_that_accelerate_was_asked_for(
    asked, dtype, tmp_path: Path, monkeypatch
):
    torch.manual_seed(0)
    b = backbone()
    learner = mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16), inner_steps=2)
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = asked  # the state is shared by all accelerators of a process
    try:
        config = mtl.TrainingConfig(
            steps=2, tasks_per_step=2, validate_every=2, validation_tasks=2, save_every=2, self_check=False
        )
        seen: set[Any] = set()
        known = b.answers()  # those of the network as it is stored, which saving notes in every precision
        monkeypatch.setattr(b, "answers", lambda: known)
        b.model.register_forward_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
        learner.generator.register_forward_hook(lambda *_: seen.add(f"generator {torch.is_autocast_enabled('cpu')}"))
        mtl.train(learner, Blobs(), Blobs(), config, tmp_path / "run", accelerator)
    finally:
        accelerator.state._mixed_precision = "no"
    assert b.options.precision == dtype
    assert seen == {dtype is not None, "generator False"}
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert all(json.loads(line)["skipped"] == 0 for line in log.splitlines())


def test_an_overflow_in_training_lowers_the_scale_and_loses_no_episode(tmp_path: Path):
    torch.manual_seed(0)
    b = backbone()
    learner = mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16), inner_steps=2)
    b.configure(precision=torch.float16, loss_scale=2.0**30)
    config = mtl.TrainingConfig(steps=1, tasks_per_step=2, validate_every=1, validation_tasks=2, self_check=False)
    mtl.train(learner, Blobs(), Blobs(), config, tmp_path / "run", Accelerator(cpu=True))
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["skipped"] == 0
    assert b.execution.loss_scale is not None
    assert 1 <= b.execution.loss_scale < 2.0**30


@pytest.mark.filterwarnings("ignore:step")
def test_an_episode_that_is_not_finite_does_not_cost_the_scale(tmp_path: Path):
    learner = mtl.MetaLearner(b := backbone(), mtl.Static(b.sites, b.width), inner_steps=2)
    b.configure(precision=torch.float16)
    before = b.execution.loss_scale
    config = mtl.TrainingConfig(steps=1, tasks_per_step=2, validate_every=1, validation_tasks=2, self_check=False)
    mtl.train(learner, Blobs(poisoned=(1,)), Blobs(), config, tmp_path / "run", Accelerator(cpu=True))
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["skipped"] == 1
    assert b.execution.loss_scale == before


def test_other_precisions_are_refused(tmp_path: Path):
    b = backbone()
    with pytest.raises(ValueError, match=r"precision=torch.float64.*bfloat16"):
        b.configure(precision=torch.float64)
    with pytest.raises(ValueError, match="examples_per_chunk=0: expected at least 1"):
        b.configure(examples_per_chunk=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'precison'"):
        b.configure(precison=None)
    assert b.options == mtl.networks.ForwardOptions(), "a refused change changes nothing"
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp8"
    try:
        with pytest.raises(ValueError, match=r"mixed_precision='fp8'.*quantization"):
            mtl.train(
                mtl.MetaLearner(b, mtl.Static(b.sites, b.width)),
                Blobs(),
                Blobs(),
                mtl.TrainingConfig(),
                tmp_path,
                accelerator,
            )
    finally:
        accelerator.state._mixed_precision = "no"


@pytest.mark.parametrize("estimator", [mtl.Windowed(), mtl.Windowed(pull=FD)], ids=["reverse", "differences"])
def test_weights_stored_in_bfloat16_need_no_autocast(wide: mtl.Backbone, estimator: mtl.Windowed):
    assert wide.load_args is not None
    stored = mtl.load_backbone(**(wide.load_args | {"dtype": "bfloat16"}))
    stored.model.load_state_dict(wide.model.state_dict())
    expected, found = mtl.Windowed()(*problem_of(wide)), estimator(*problem_of(stored))
    assert all(v.dtype == torch.float32 for v in found.grads.values())
    assert agreement(flat(found), flat(expected))[0] > 0.99
