"""Episodes prepared, and tasks served, in other processes: forked, spawned, or started by the fork server."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from networks import build
from PIL import Image
from serving import adapted_tasks, learner_of, logits_of, queries_of
from torch import Tensor

import mtl
from mtl.data import FamilyRequest, InputCache, divide_families, open_families
from mtl.fewshot.training.processes import episode_loader
from mtl.fewshot.training.shipping import Episodes, check_shipping

METHODS = ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
SIZES: dict[str, Any] = {"ways": 2, "shots": 1, "queries": 1}


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def letters(texts: list[str]) -> dict[str, Tensor]:
    """Lengths of texts, as tokens."""
    lengths = torch.tensor([[len(text), 1] for text in texts])
    return {"input_ids": lengths, "attention_mask": torch.ones_like(lengths)}


def photos(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def sources(folder: Path) -> dict[str, mtl.TaskSource]:
    """Every kind of task source, and every way to preprocess."""
    backbone = build("vit_tiny_patch16_224", folder, last_k=1)
    images = mtl.open_images(photos(folder / "photos"))
    on_disk = InputCache(backbone.precompute, folder=folder / "cache", version=backbone.cache_key())
    ways_to_read = {"images": backbone.preprocess, "prefix": backbone.precompute, "prefix on disk": on_disk}
    found: dict[str, mtl.TaskSource] = {
        name: mtl.ClassTasks(images, images.class_names, preprocess=read, **SIZES)
        for name, read in ways_to_read.items()
    }
    found["docstrings"] = mtl.DocstringTasks("train", preprocess=letters, **SIZES)
    found["glyphs"] = mtl.GlyphTasks("train", **SIZES)
    return found
    families = divide_families(open_families(folder / "photos"), request=FamilyRequest(ways=2, min_per_class=2))
    found["families"] = mtl.data.FamilyTasks(families, "train", preprocess=backbone.preprocess, **SIZES)
    return found


def alike(found: mtl.Episode, expected: mtl.Episode) -> bool:
    pairs = [(getattr(e, side).inputs for e in (found, expected)) for side in ("support", "query")]
    return found.families == expected.families and all(
        a.tensors.keys() == b.tensors.keys() and all(map(torch.equal, a, b)) for a, b in pairs
    )


@pytest.mark.parametrize("start_method", METHODS, indirect=True)
def test_workers_prepare_the_episodes_of_a_single_process(start_method: str, tmp_path: Path):
    made = list(sources(tmp_path).values())
    tasks = mtl.Alternating(made)
    check_shipping(tasks, 1)
    config = mtl.TrainingConfig(steps=2 * len(made), tasks_per_step=1, workers=1)
    loader = episode_loader(tasks, config, 0, Accelerator(cpu=True))
    for i, batch in enumerate(loader):
        assert alike(batch[0], tasks.sample(i)), f"episode {i}, {start_method}"


def test_sources_travel_without_what_they_have_cached(tmp_path: Path):
    for name, tasks in sources(tmp_path).items():
        expected = [tasks.sample(i) for i in range(2)]
        arrived = pickle.loads(pickle.dumps(Episodes(tasks)))
        assert all(alike(arrived[i], episode) for i, episode in enumerate(expected)), name


def test_preprocessing_travels_without_the_network(tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path)
    weights = sum(p.nbytes for p in backbone.parameters())
    assert len(pickle.dumps(backbone.preprocess)) < weights / 10 < len(pickle.dumps(backbone.precompute))


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"], indirect=True)
def test_what_cannot_travel_is_refused_before_the_first_step(start_method: str, tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path)
    images = mtl.open_images(photos(tmp_path / "photos"))
    tasks = mtl.ClassTasks(images, images.class_names, preprocess=lambda items: backbone.preprocess(items), **SIZES)
    config = mtl.TrainingConfig(steps=1, workers=1)
    with pytest.raises(ValueError, match=r"^workers=1: this ClassTasks cannot go to.*backbone\.precompute.*workers=0$"):
        mtl.train(mtl.MetaLearner(backbone), tasks, tasks, config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), start_method
    check_shipping(tasks, 0)


def test_a_forked_worker_may_take_a_function_of_any_kind(tmp_path: Path):
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("this Python forks only when told to")
    images = mtl.open_images(photos(tmp_path / "photos"))
    check_shipping(
        mtl.ClassTasks(images, images.class_names, preprocess=lambda items: torch.ones(len(items)), **SIZES), 1
    )


@pytest.mark.parametrize("method", METHODS)
def test_adapted_tasks_answer_alike_in_other_processes(method: str, tmp_path: Path):
    learner = learner_of(build("vit_tiny_patch16_224", tmp_path, levels="all", last_k=1))
    tasks, queries = adapted_tasks(learner, 2), queries_of(learner)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        for task in tasks:
            assert torch.equal(pool.submit(logits_of, task, queries).result(), task.logits(queries))
