"""``torch.compile`` anywhere: gradients are those of the code as it was written, and never lose a part in silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from estimator_tables import error
from tiny import Blobs, backbone
from torch import nn

import mtl
from mtl.metagrad import Functional
from mtl.metagrad.products import FiniteDifference

compiled = partial(torch.compile, backend="aot_eager")  # differentiated as by any other backend, but quick to compile

ESTIMATORS = {
    "exact": mtl.Exact(),
    "rematerialised": mtl.Rematerialised(),
    "rematerialised, kept": mtl.Rematerialised(budget=10.0),
    "rematerialised, forward": mtl.Rematerialised("forward-over-reverse"),
    "windowed": mtl.Windowed(2),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh()).double()


def part_wrapped(net: nn.Sequential) -> nn.Sequential:
    net[2] = compiled(net[2])
    return net


def in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="aot_eager")
    return net


def part_in_place(net: nn.Sequential) -> nn.Sequential:
    net[0].compile(backend="aot_eager")
    return net


def method(net: nn.Module) -> nn.Module:
    net.forward = compiled(net.forward)
    return net


NETWORKS = {"wrapped": compiled, "part": part_wrapped, "in place": in_place, "part in place": part_in_place}
NETWORKS |= {"method": method}


def plain(net: nn.Module) -> nn.Module:
    return net


def problem(
    compile_network: Callable = plain, compile_call: Callable = plain, tasks: int = 1
) -> tuple[mtl.InnerProblem, dict]:
    """Meta-parameters of types I and L."""
    functional = Functional(compile_network(network()))
    weights, call = functional.weights(tasks), compile_call(functional)
    x = torch.randn(tasks, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stated = mtl.InnerProblem(
        lambda meta: {k: v * meta["start"] for k, v in weights.items()},
        lambda w, meta, step: call(w, x * meta["size"]).square().mean((1, 2)),
        lambda w, meta: (call(w, x) - 1).square().mean((1, 2)),
        num_steps=3,
        optimizer=mtl.InnerSGD(0.5),
    )
    return stated, {"size": torch.tensor(1.5).double(), "start": torch.tensor(1.1).double()}


@pytest.fixture(autouse=True)
def fresh():
    """What was compiled too often would run as it was written."""
    torch._dynamo.reset()


@pytest.mark.parametrize("estimator", [mtl.Exact(), mtl.Windowed(2)])
@pytest.mark.parametrize("how", NETWORKS.values(), ids=NETWORKS)
def test_compiled_networks_have_second_derivatives(how, estimator):
    expected = estimator(*problem()).grads
    assert error(estimator(*problem(how)).grads, expected) < 1e-8
    assert expected["size"].abs() > 1e-3, "what would be lost"


@pytest.mark.parametrize(("name", "tasks"), [*((name, 1) for name in ESTIMATORS), ("windowed", 2)])
def test_so_have_compiled_functions_under_the_losses(name, tasks):
    estimator = ESTIMATORS[name]
    found = estimator(*problem(compile_call=compiled, tasks=tasks)).grads
    assert error(found, estimator(*problem(tasks=tasks)).grads) < 1e-8


@pytest.mark.parametrize("estimator", [mtl.Exact(), mtl.metagrad.OneStep()])
def test_an_estimator_within_compiled_code_keeps_its_second_derivatives(estimator):
    stated, meta = problem()
    found = compiled(lambda meta: estimator(stated, meta).grads)(meta)
    assert error(found, estimator(stated, meta).grads) < 1e-8


def test_first_order_passes_run_what_was_compiled():
    calls = []

    def counting_backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        def call(*args):
            calls.append(len(inputs))
            return graph.forward(*args)

        return call

    stated, meta = problem(compile_call=partial(torch.compile, backend=counting_backend))
    mtl.FirstOrder()(stated, meta)
    assert len(calls) == 4, "three inner gradients and the outer loss"
    mtl.Rematerialised()(stated, meta)
    assert len(calls) == 8, "the three pulls are not among them"
    mtl.Rematerialised(FiniteDifference())(stated, meta)
    assert len(calls) == 12 + 6, "but finite differences are"


def test_nothing_is_loaded_for_code_that_nobody_compiled():
    lines = [
        "import sys, torch, mtl",
        "loss = lambda w, *_: w['w'].square().sum(1)",
        "stated = mtl.InnerProblem(lambda m: {'w': m['w']}, loss, loss, 2)",
        "mtl.Rematerialised()(stated, {'w': torch.ones(1, 3)})",
        "assert 'torch._dynamo' not in sys.modules, 'seconds to import'",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def blocks_wrapped(model: nn.Module) -> nn.Module:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = compiled(block)
    return model


def features_method(model: nn.Module) -> nn.Module:
    model.forward_features = compiled(model.forward_features)
    return model


@pytest.mark.parametrize("how", [compiled, in_place, blocks_wrapped, features_method])
def test_a_backbone_takes_a_compiled_network_as_it_was(how):
    def gradient(how: Callable) -> tuple[list[str], torch.Tensor]:
        made = backbone(last_k=1)
        model = how(made.model)
        model(torch.zeros(2, 1, 16, 16))  # compiled before there are hooks
        again = mtl.networks.Backbone(model, made.adapter, name="again", last_k=1)
        learner = mtl.MetaLearner(again, mtl.Static(again.sites, again.width), estimator=mtl.Rematerialised())
        episode = Blobs().sample(0)
        meta = learner.generator.for_training(learner.view(episode.support))
        found = learner.meta_gradient(episode, {k: v.detach() for k, v in meta.items()}).grads
        return list(again.model.state_dict()), torch.cat([v.flatten() for v in found.values()])

    names, found = gradient(how)
    expected_names, expected = gradient(plain)
    assert names == expected_names
    assert torch.equal(found, expected)
