"""One network, many threads and many copies: every answer is the one that it would be alone."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stress_serving
import torch
from networks import batch, build, modulation_of, patched
from serving import adapted_tasks, learner_of, queries_of, served
from torch import Tensor, nn

import mtl
from mtl.metagrad import Functional
from mtl.networks.backbones.patching import patch_forwards
from mtl.networks.merging import merge
from mtl.networks.modulation import CallLocal, CopyableLock, Modulation

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {}),
    ("vit_tiny_patch16_224", {"levels": "all", "last_k": 1}),
    ("bert", {"levels": "all", "sites": "none"}),
    ("vit", {"last_k": 1}),
]
NAMED = [pytest.param(*family, id=family[0]) for family in FAMILIES]
THREADS = 8


def at_once(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of functions that start together, each in its own thread."""
    gate = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        gate.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


# --- threads ---


@pytest.mark.parametrize(("name", "options"), NAMED)
def test_threads_get_the_answers_of_a_single_one(name: str, options: dict[str, Any], tmp_path: Path):
    learner = learner_of(build(name, tmp_path, **options))
    tasks, queries = adapted_tasks(learner, 6), queries_of(learner)
    alone = [task.logits(queries) for task in tasks]
    assert not torch.allclose(alone[0], alone[1]), "tasks that answer alike would show nothing"
    for found in served(tasks, queries, threads=THREADS, rounds=4):
        for task, logits in found:
            assert torch.equal(logits, alone[task])


@pytest.mark.parametrize(("name", "options"), NAMED)
def test_the_first_calls_of_all_threads_find_the_prefix_together(name: str, options: dict[str, Any], tmp_path: Path):
    learner = learner_of(build(name, tmp_path, **options))
    support = [(batch(learner.backbone, 1, 6), 1 + 0.1 * i) for i in range(THREADS)]

    def adapt(i: int) -> Tensor:
        inputs, size = support[i]
        scaled = inputs if isinstance(inputs, dict) else size * inputs
        examples = mtl.Examples(scaled, torch.tensor([[0, 1, 2, 0, 1, 2]]))
        return learner.adapt(examples, steps=2).logits(queries_of(learner))

    first = at_once([lambda i=i: adapt(i) for i in range(THREADS)])
    for i, found in enumerate(first):
        assert torch.equal(found, adapt(i))
    assert not patched(learner.backbone.model), "the model is left as it was"


@pytest.mark.parametrize("options", [{"checkpoint_blocks": True}, {"examples_per_chunk": 2}])
def test_training_in_one_thread_while_others_serve(options: dict[str, Any], tmp_path: Path):
    learner = learner_of(build("test_resnet", tmp_path, last_k=1))  # attention may take another kernel meanwhile
    learner.backbone.configure(**options)
    (task,), queries = adapted_tasks(learner, 1), queries_of(learner)
    expected, episode = task.logits(queries), mtl.Episode(task.support, task.support, 3)

    def gradient() -> list[Tensor]:
        learner.generator.zero_grad()
        learner.meta_step(episode)
        return [p.grad.clone() for p in learner.generator.parameters() if p.grad is not None]

    alone, busy = gradient(), threading.Event()

    def train() -> list[list[Tensor]]:
        try:
            return [gradient() for _ in range(5)]
        finally:
            busy.set()

    def serve() -> list[Tensor]:
        found = []
        while not busy.is_set() or not found:
            found += [task.logits(queries)]
        return found

    steps, *answers = at_once([train, *[serve] * 3])
    assert all(torch.equal(a, b) for step in steps for a, b in zip(step, alone, strict=True))
    assert all(torch.equal(logits, expected) for found in answers for logits in found)


def test_a_backward_pass_in_another_thread_recomputes_under_its_own_modulation(tmp_path: Path):
    """As on a GPU, where autograd recomputes in threads of its own."""
    backbone = build("vit_tiny_patch16_224", tmp_path).configure(checkpoint_blocks=True)
    inputs, plain = batch(backbone), modulation_of(backbone)

    def loss(scale: Tensor) -> Tensor:
        return backbone(inputs, Modulation(scale, plain.shift)).pow(3).sum()

    scale = plain.scale.requires_grad_()
    (expected,) = torch.autograd.grad(loss(scale), scale)
    late, other = loss(scale), modulation_of(backbone, size=0.5)

    def backward() -> Tensor:
        with backbone.modulator.modulating(other):  # what this thread is at must not count
            return torch.autograd.grad(late, scale)[0]

    assert torch.equal(at_once([backward])[0], expected)


def test_merging_and_copying_leave_the_hooks_to_those_who_serve(tmp_path: Path):
    learner = learner_of(build("test_resnet", tmp_path))
    (task,), queries = adapted_tasks(learner, 1), queries_of(learner)
    expected, busy = task.logits(queries), threading.Event()

    def copies() -> bool:
        try:
            for _ in range(5):
                task.merge()
                copied = pickle.loads(pickle.dumps(copy.deepcopy(task)))
                assert torch.equal(copied.logits(queries), expected)
            return True
        finally:
            busy.set()

    def serve() -> bool:
        found = True
        while not busy.is_set():
            found &= torch.equal(task.logits(queries), expected)
        return found

    assert all(at_once([copies, *[serve] * 3]))


def test_a_learner_predicts_for_the_task_of_its_thread(tmp_path: Path):
    learner = learner_of(build("test_resnet", tmp_path))
    queries, gate = queries_of(learner), threading.Barrier(4)

    def adapt_and_predict(i: int) -> bool:
        support = mtl.Examples((1 + i) * batch(learner.backbone, 1, 6), torch.tensor([[0, 1, 2, 0, 1, 2]]))
        adapted = learner.adapt(support)
        gate.wait()  # all have adapted
        return bool((learner.predict(queries) == adapted.predict(queries)).all())

    assert all(at_once([lambda i=i: adapt_and_predict(i) for i in range(4)]))
    assert len(learner.predict(queries)) == 1, "a thread that adapted to nothing gets the last of all"


def test_patches_are_those_of_a_thread():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    plain = layer(x)

    def sees_its_own(i: int) -> bool:
        right = True
        for _ in range(200):
            with patch_forwards({layer: lambda x: x * i}):
                right &= torch.equal(layer(x), x * i)
        return right

    assert all(at_once([lambda i=i: sees_its_own(i) for i in range(4)]))
    assert torch.equal(layer(x), plain)
    assert "forward" not in layer.__dict__


def test_a_copy_made_under_a_patch_has_its_own_forward():
    layer, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    with patch_forwards({layer[0]: lambda x: 0 * x}):
        copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    with torch.no_grad():
        expected = layer(x)
        layer[0].weight.zero_()
    assert all(torch.equal(copied(x), expected) for copied in copies)


def test_local_values_nest_and_stay_in_their_thread():
    local, other = CallLocal(1), CallLocal("a")
    two = local.set_to(2)
    with two, other.set_to("b"), two:
        assert (local.get(), other.get()) == (2, "b")
        assert at_once([local.get]) == [1]
        assert copy.deepcopy(local).get() == pickle.loads(pickle.dumps(local)).get() == 1
    assert (local.get(), other.get()) == (1, "a")


def test_a_copied_lock_is_free():
    lock = CopyableLock()
    with lock:
        assert at_once([copy.deepcopy(lock).__enter__]) == [None]


def test_adapting_through_checkpoints_while_another_thread_trains(tmp_path: Path):
    """Training takes another kernel of attention, for the whole process: a recomputation must not meet it half-way."""
    backbone = build("vit_tiny_patch16_224", tmp_path).configure(checkpoint_blocks=True)
    learner, busy = learner_of(backbone), threading.Event()
    (task,), queries = adapted_tasks(learner, 1), queries_of(learner)
    episode = mtl.Episode(task.support, task.support, 3)

    def train() -> None:
        try:
            for _ in range(5):
                learner.meta_step(episode)
        finally:
            busy.set()

    def adapt() -> None:
        while not busy.is_set():
            found = learner.adapt(task.support, steps=2).logits(queries)
            torch.testing.assert_close(found, task.logits(queries), rtol=1e-5, atol=1e-5)

    at_once([train, adapt, adapt])


@pytest.mark.slow
def test_a_part_of_the_stress_script():
    stress_serving.main(threads=4, tasks=4, rounds=1, methods=(), options=stress_serving.OPTIONS[2:4])


# --- copies ---

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(("name", "options"), NAMED)
def test_copies_answer_alike_and_are_their_own(how: str, name: str, options: dict[str, Any], tmp_path: Path):
    learner = learner_of(build(name, tmp_path, **options))
    tasks, queries = adapted_tasks(learner, 2), queries_of(learner)
    expected = [task.logits(queries) for task in tasks]
    copies, again = COPIES[how](tasks), COPIES[how](learner)
    assert all(torch.equal(task.logits(queries), logits) for task, logits in zip(copies, expected, strict=True))
    assert torch.equal(again.adapt(tasks[0].support, steps=2).logits(queries), expected[0])
    assert again.backbone is again.model.backbone is not learner.backbone
    assert copies[0].model is copies[1].model, "tasks of one learner share its network after all"
    with torch.no_grad():
        for parameter in (*again.backbone.parameters(), *copies[0].model.backbone.parameters()):
            parameter.zero_()
        again.backbone.modulator.remove()
    assert all(torch.equal(task.logits(queries), logits) for task, logits in zip(tasks, expected, strict=True))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS)
def test_generators_copy(how: str, kind: str, tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path, levels="all")
    generator = mtl.fewshot.make_generator(kind, backbone)
    learner = mtl.MetaLearner(backbone, generator)
    view = learner.view(mtl.Examples(batch(backbone, 1, 6), torch.tensor([[0, 1, 2, 0, 1, 2]])))
    for name, value in COPIES[how](generator)(view).items():
        assert torch.equal(value, generator(view)[name])


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["test_resnet", "llama"])
def test_merged_networks_and_plain_ones_copy(how: str, name: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    merged, x = merge(backbone, modulation_of(backbone)), backbone.example_inputs(2)
    expected = backbone.features(x, merged.model)
    assert torch.equal(backbone.features(x, COPIES[how](merged).model), expected)
    with backbone.modulator.modulating(modulation_of(backbone)):
        assert torch.equal(backbone.features(x, COPIES[how](backbone.model)), backbone(batch(backbone, 1))[0])


def test_a_network_in_several_places_is_not_copied(tmp_path: Path):
    places = {"conv1": "cpu", "bn1": "disk"}
    whole = build("test_resnet", tmp_path)
    parts = {name: places.get(name, "cpu") for name, _ in whole.model.named_children()}
    spread = build("test_resnet", tmp_path, device_map=parts, offload_folder=tmp_path / "offload")
    for copies in COPIES.values():
        with pytest.raises(TypeError, match=r"cannot copy or pickle test_resnet.*load it anew"):
            copies(spread)
    x, expected = batch(spread), spread(batch(spread))
    assert all(torch.equal(found, expected) for found in at_once([lambda: spread(x)] * THREADS))


def test_functional_networks_are_called_by_one_thread_at_a_time():
    functional = Functional(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    x = torch.randn(1, 4, 3)
    weights = [{k: v + i for k, v in functional.weights().items()} for i in range(THREADS)]
    expected = [functional(w, x) for w in weights]

    def call(i: int) -> bool:
        return all(torch.equal(functional(weights[i], x), expected[i]) for _ in range(50))

    assert all(at_once([lambda i=i: call(i) for i in range(THREADS)]))
