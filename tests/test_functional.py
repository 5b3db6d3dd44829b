"""A network as a function of its weights: the plain network's numbers, derivatives of any order, untouched buffers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mtl
from mtl.metagrad.functional import Functional

TASKS, EXAMPLES, WAYS = 3, 4, 2


def network(kind: str = "batch", smooth: bool = False) -> nn.Module:
    """Two convolutions in float64, with one of three normalisations, with or without kinks."""
    torch.manual_seed(0)
    norm = {
        "batch": lambda: nn.BatchNorm2d(3),
        "batch, no running statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
        "group": lambda: nn.GroupNorm(1, 3),
    }[kind]
    layers = [[nn.Conv2d(c, 3, 3, 2, 1), norm(), nn.Softplus() if smooth else nn.ReLU()] for c in (1, 3)]
    return nn.Sequential(*layers[0], *layers[1], nn.Flatten(), nn.Linear(12, WAYS)).double()


def images(tasks: int = TASKS) -> torch.Tensor:
    return torch.randn(tasks, EXAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def varied(functional: Functional, tasks: int = TASKS) -> dict:
    """Weights that differ between tasks."""
    g = torch.Generator().manual_seed(2)
    return {k: v + 0.1 * torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in functional.weights(tasks).items()}


KINDS = ["batch", "batch, no running statistics", "group"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("tasks", [1, TASKS])
def test_equals_the_plain_network(kind, mode, tasks):
    plain = network(kind).train(mode == "train")
    functional = Functional(plain)
    weights = varied(functional, tasks)
    found = functional(weights, images(tasks))
    for t in range(tasks):
        assert torch.allclose(found[t], functional.loaded(weights, t)(images(tasks)[t]), rtol=1e-12, atol=1e-12)
    assert torch.equal(Functional(plain)(functional.weights(), images(1))[0], plain(images(1)[0]))


def test_a_row_depends_on_its_own_task_only():
    functional = Functional(network())
    weights, x = varied(functional), images()
    before = functional(weights, x)
    others = {k: torch.cat([v[:1], 2 * v[1:]]) for k, v in weights.items()}
    after = functional(others, torch.cat([x[:1], x[1:] + 1]))
    assert torch.equal(before[0], after[0])
    assert not torch.isclose(before[1:], after[1:]).any()


@pytest.mark.parametrize("tasks", [1, TASKS])
def test_buffers_stay_and_calls_repeat(tasks):
    plain = network()
    functional = Functional(plain)
    before = {k: b.clone() for k, b in plain.named_buffers()}
    first, second = (functional(varied(functional, tasks), images(tasks)) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(b, before[k]) for k, b in plain.named_buffers())
    plain(images(1)[0])
    assert not any(torch.equal(b, before[k]) for k, b in plain.named_buffers()), "a plain call does change them"


def test_cumulative_running_statistics_are_no_obstacle():
    plain = nn.Sequential(nn.BatchNorm1d(2, momentum=None))
    functional = Functional(plain)
    functional(functional.weights(2), torch.randn(2, 5, 2))
    assert plain[0].num_batches_tracked == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tasks", [1, 2])
def test_first_and_second_derivatives(kind, tasks):
    functional = Functional(network(kind, smooth=True))
    weights = varied(functional, tasks)

    def loss(*values):
        return functional(dict(zip(weights, values, strict=True)), images(tasks)).square().sum()

    values = [v.requires_grad_() for v in weights.values()]
    assert torch.autograd.gradcheck(loss, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, values, fast_mode=True)


def problem(functional: Functional, steps: int = 3, tasks: int = TASKS, momentum: float = 0.0):
    """MAML over all weights, with a learned step size."""
    labels = torch.arange(EXAMPLES).remainder(WAYS).expand(tasks, EXAMPLES)
    support, query = images(tasks), images(tasks).flip(1) + 0.3
    meta = {k: v.squeeze(0) for k, v in functional.weights().items()} | {"rate": torch.tensor(0.1).double()}

    def loss(weights, inputs):
        logits = functional(weights, inputs)
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)

    found = mtl.InnerProblem(
        init=lambda m: {k: v.expand(tasks, *v.shape) for k, v in m.items() if k != "rate"},
        inner_loss=lambda weights, m, step: loss(weights, support),
        outer_loss=lambda weights, m: loss(weights, query),
        num_steps=steps,
        optimizer=mtl.InnerSGD(lambda m: m["rate"], momentum=momentum),
    )
    return found, meta


def unrolled(plain: nn.Module, steps: int, momentum: float) -> dict:
    """MAML as it is taught, task by task, with nothing of the library in it."""
    labels = torch.arange(EXAMPLES).remainder(WAYS)
    meta = {k: p.detach().clone().requires_grad_() for k, p in plain.named_parameters()}
    rate, loss = torch.tensor(0.1).double().requires_grad_(), torch.zeros(()).double()
    for x in images():
        weights, velocity = dict(meta), {k: torch.zeros_like(v) for k, v in meta.items()}
        for _ in range(steps):
            inner = F.cross_entropy(torch.func.functional_call(plain, weights, x), labels)
            gradient = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            velocity = {k: momentum * velocity[k] + g for k, g in zip(weights, gradient, strict=True)}
            weights = {k: v - rate * velocity[k] for k, v in weights.items()}
        loss = loss + F.cross_entropy(torch.func.functional_call(plain, weights, x.flip(0) + 0.3), labels) / TASKS
    names = [*meta, "rate"]
    return dict(zip(names, torch.autograd.grad(loss, [*meta.values(), rate]), strict=True))


def close(found: dict, expected: dict, tolerance: float = 1e-9) -> bool:
    # Absolute beside a floor: the bias below a batch normalisation has no gradient at all.
    return all((found[k] - v).norm() <= tolerance * (v.norm() + 1e-3) for k, v in expected.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_exact_estimators_are_maml_over_all_weights(kind, momentum):
    plain = network(kind)
    expected = unrolled(plain, 3, momentum)
    inner, meta = problem(Functional(plain), momentum=momentum)
    for estimator in (mtl.Exact(), mtl.Rematerialised(), mtl.metagrad.Truncated(3), mtl.Windowed(1)):
        assert close(estimator(inner, meta).grads, expected)
    assert not close(mtl.FirstOrder()(inner, meta).grads, expected, 1e-3), "second derivatives do matter here"


def test_lazy_windows_are_fewer_larger_steps():
    inner, meta = problem(Functional(network()), steps=4)
    coarse, _ = problem(Functional(network()), steps=2)
    lazy = mtl.Windowed(2, "lazy")(inner, meta).grads
    large = mtl.Rematerialised()(coarse, meta | {"rate": 2 * meta["rate"]}).grads
    assert close(lazy, large | {"rate": 2 * large["rate"]})


@pytest.mark.parametrize("tasks", [1, TASKS])
@pytest.mark.parametrize(
    ("pull", "tolerance"),
    [("reverse", 1e-9), ("forward-over-reverse", 1e-9), (mtl.metagrad.FiniteDifference(1e-4), 1e-5)],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # what torch's own batching of forward mode uses
def test_pulls(tasks, pull, tolerance):
    inner, meta = problem(Functional(network(smooth=True)), tasks=tasks)
    expected = mtl.Exact()(inner, meta).grads
    assert close(mtl.Rematerialised(pull)(inner, meta).grads, expected, tolerance)


def test_group_normalisation_has_no_forward_over_reverse():
    """It is PyTorch that lacks the formula; when this fails, the page and the docstring can say so."""
    inner, meta = problem(Functional(network("group", smooth=True)))
    with pytest.raises(NotImplementedError, match="native_group_norm_backward"):
        mtl.Rematerialised("forward-over-reverse")(inner, meta)


def test_names_and_numbers_of_tasks_are_checked():
    functional = Functional(network())
    with pytest.raises(ValueError, match=r"weights \['head'\] are no parameters"):
        functional({"head": torch.zeros(1, 2)}, images(1))
    with pytest.raises(ValueError, match=r"\[2, 3\] tasks"):
        functional(functional.weights(2), images(3))
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(3, 1, 3, 3\), expected \('tasks', 3, 1, 3, 3\)"):
        functional({"0.weight": functional.weights()["0.weight"][0]}, images(1))


def test_weights_that_are_left_out_are_constants_of_the_network():
    plain = network()
    functional = Functional(plain)
    weights = functional.weights(TASKS)
    head = {k: 2 * v for k, v in weights.items() if k.startswith("7.")}
    found = functional(head, images())
    assert torch.equal(found, functional(weights | head, images()))
    assert not found.requires_grad


# --- layers that are hard to batch ---


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.layer, nn.RNNBase):
            return self.layer(x)[0]
        state = self.layer(x[:, 0], None)
        return self.layer(x[:, 1], state)[0] if isinstance(state, tuple) else self.layer(x[:, 1], state)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


HARD = {
    "attention": Attention,
    "encoder": encoder,
    "lstm": lambda: Recurrent(nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)),
    "gru": lambda: Recurrent(nn.GRU(4, 3, batch_first=True)),
    "rnn": lambda: Recurrent(nn.RNN(4, 3, batch_first=True)),
    "lstm cell": lambda: Recurrent(nn.LSTMCell(4, 3)),
    "gru cell": lambda: Recurrent(nn.GRUCell(4, 3)),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_tasks_of_attention_and_recurrent_layers(name: str, mode: str, graph: bool):
    torch.manual_seed(0)
    functional = Functional(HARD[name]().double().train(mode == "train"))
    x, weights = torch.randn(TASKS, 2, 3, 4).double(), varied(functional)
    leaves = {k: v.requires_grad_() for k, v in weights.items()}
    with torch.set_grad_enabled(graph):
        found = functional(leaves, x)
    rows = [{k: v.detach()[t : t + 1].requires_grad_() for k, v in weights.items()} for t in range(TASKS)]
    alone = [functional(row, x[t : t + 1]) for t, row in enumerate(rows)]
    torch.testing.assert_close(found, torch.cat(alone).detach(), rtol=1e-12, atol=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()
    if graph:
        together = torch.autograd.grad(found.square().sum(), list(leaves.values()))
        for t, (row, out) in enumerate(zip(rows, alone, strict=True)):
            apart = torch.autograd.grad(out.square().sum(), list(row.values()))
            for g, h in zip(together, apart, strict=True):
                torch.testing.assert_close(g[t], h[0], rtol=1e-10, atol=1e-12)


class Branching(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_what_cannot_be_batched_is_named():
    functional = Functional(Branching(2, 2))
    functional(functional.weights(1), torch.ones(1, 3, 2))
    with pytest.raises(ValueError, match=r"Branching cannot take 2 tasks at once.*one task at a time"):
        functional(functional.weights(2), torch.ones(2, 3, 2))
    with pytest.raises(RuntimeError, match="Expected size"):  # any other mistake keeps its own words
        Functional(nn.Linear(2, 2))(Functional(nn.Linear(2, 2)).weights(2), torch.ones(2, 3, 5))
