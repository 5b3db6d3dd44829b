"""The cache on disk: every example is preprocessed once, over runs and processes, and never confused with another."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mtl
from mtl.data import InputCache, TextCollection
from mtl.data.own.row_store import RowStore
from mtl.episode import Inputs

TEXTS = TextCollection("a shelf", {"a": (0, 1, 2), "b": (3, 4, 5)}, ["one", "two", "three", "four", "five", "sixteen"])
ALL = list(range(6))


def preprocess(texts: list[str]) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([len(t) for t in texts])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return {"input_ids": mask * lengths[:, None], "attention_mask": mask, "prefix": mask[..., None].half() / 3}


def counted() -> tuple[list[str], Callable[[list[str]], Any]]:
    calls: list[str] = []
    return calls, lambda texts: calls.extend(texts) or preprocess(texts)


def same(a: Inputs, b: Inputs) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a.tensors
    )


def test_a_second_run_preprocesses_nothing(tmp_path: Path):
    calls, count = counted()
    first = InputCache(count, folder=tmp_path, version="v")
    assert first.fill(TEXTS, examples_per_batch=4, progress=False) == 6
    assert first.fill(TEXTS, progress=False) == 0
    second = InputCache(count, folder=tmp_path, version="v", limit=0)
    assert second.fill(TEXTS, progress=False) == 0
    expected = InputCache(preprocess)(TEXTS, ALL)
    assert same(first(TEXTS, ALL), expected)
    assert same(second(TEXTS, ALL), expected)
    assert sorted(calls) == sorted(TEXTS.texts)
    tasks = mtl.ClassTasks(TEXTS, ["a", "b"], preprocess=second, ways=2, shots=1, queries=1)
    assert tasks.sample(0).support.inputs["prefix"].dtype == torch.float16
    assert len(calls) == 6


def test_versions_do_not_share(tmp_path: Path):
    InputCache(preprocess, folder=tmp_path, version="v").fill(TEXTS, progress=False)
    calls, count = counted()
    InputCache(count, folder=tmp_path, version="w")(TEXTS, [0])
    assert calls == ["one"]
    with pytest.raises(ValueError, match=r"needs a version.*backbone\.cache_key\(\)"):
        InputCache(preprocess, folder=tmp_path)


def test_what_waits_is_written_when_the_cache_goes(tmp_path: Path):
    cache = InputCache(preprocess, folder=tmp_path, version="v")
    cache(TEXTS, [1, 2])
    assert not list(tmp_path.rglob("*.safetensors"))
    del cache
    calls, count = counted()
    InputCache(count, folder=tmp_path, version="v")(TEXTS, [1, 2, 3])
    assert calls == ["four"]


def test_a_full_file_is_written_at_once_and_others_see_it(tmp_path: Path):
    one, other = RowStore(tmp_path, shard_bytes=16), RowStore(tmp_path)
    assert other.get(["a"]) == {}
    one.put("a", Inputs.of(torch.arange(2)))
    assert other.get(["a", "b"])["a"].tensor.tolist() == [0, 1]
    other.put("a", Inputs.of(torch.zeros(2)))
    other.flush()
    assert len(list(tmp_path.iterdir())) == 1, "it was there"


def fill(folder: Path) -> None:
    InputCache(preprocess, folder=folder, version="v").fill(TEXTS, examples_per_batch=1, progress=False)


def test_two_processes_may_fill_one_folder(tmp_path: Path):
    workers = [multiprocessing.get_context("fork").Process(target=fill, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    calls, count = counted()
    assert same(InputCache(count, folder=tmp_path, version="v")(TEXTS, ALL), InputCache(preprocess)(TEXTS, ALL))
    assert not calls


def test_a_damaged_file_is_named_and_computed_again(tmp_path: Path):
    fill(tmp_path)
    [file] = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    calls, count = counted()
    cache = InputCache(count, folder=tmp_path, version="v")
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged .*computed again"):
        assert same(cache(TEXTS, ALL), InputCache(preprocess)(TEXTS, ALL))
    assert len(calls) == 6
    cache.flush()
    assert InputCache(count, folder=tmp_path, version="v").fill(TEXTS, progress=False) == 0


def test_a_file_of_somebody_else_is_neither_read_nor_removed(tmp_path: Path):
    mine = tmp_path / "model.safetensors"
    mine.write_bytes(b"mine")
    assert RowStore(tmp_path).get(["a"]) == {}
    assert mine.read_bytes() == b"mine"


def test_a_draft_of_a_killed_write_is_not_read(tmp_path: Path):
    save_file({"a/": torch.zeros(1)}, tmp_path / ".draft-12345678.safetensors")
    assert RowStore(tmp_path).get(["a"]) == {}


def test_a_worker_gets_the_folder_and_no_rows(tmp_path: Path):
    fill(tmp_path)
    worker = pickle.loads(pickle.dumps(InputCache(preprocess, folder=tmp_path, version="v")))
    assert worker.fill(TEXTS, progress=False) == 0


@pytest.fixture
def images(tmp_path: Path) -> mtl.data.ImageCollection:
    for i, name in enumerate(("red", "green", "blue", "white")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (8, 8), (i, j, 0)).save(tmp_path / "images" / name / f"{j}.png")
    return mtl.open_images(tmp_path / "images")


def test_an_image_that_changes_is_preprocessed_again(images: mtl.data.ImageCollection, tmp_path: Path):
    backbone = mtl.load_backbone("test_resnet", pretrained=False, img_size=32)
    options: Any = {"folder": tmp_path / "cache", "version": backbone.cache_key()}
    before = InputCache(backbone.preprocess, **options)
    assert before.fill(images, progress=False) == 8
    Image.new("RGB", (9, 8), "white").save(images.reader.name(3))
    again = mtl.open_images(tmp_path / "images")
    after = InputCache(backbone.preprocess, **options)
    assert after.fill(again, progress=False) == 1
    torch.testing.assert_close(after(again, range(8)).tensor, backbone.preprocess(again.read(range(8))))


def test_readouts_of_images_are_kept(images: mtl.data.ImageCollection, tmp_path: Path):
    cache = InputCache(lambda items: {"readout": torch.ones(len(items), 5).half()}, folder=tmp_path / "c", version="v")
    cache.fill(images, progress=False)
    assert cache(images, [1, 1])["readout"].tolist() == [[1.0] * 5] * 2


def test_images_in_no_file_are_told_apart_by_their_pixels(images: mtl.data.ImageCollection, monkeypatch: Any):
    named = [images.identity_of_example(i) for i in range(8)]
    monkeypatch.setattr(type(images.reader), "name", lambda self, i: f"row {i}")
    hashed = [images.identity_of_example(i) for i in range(8)]
    assert len(set(named)) == len(set(hashed)) == 8
    assert [images.identity_of_example(i) for i in range(8)] == hashed


def test_the_key_of_a_backbone_tells_what_makes_other_features():
    def key(**options: Any) -> str:
        return mtl.load_backbone("test_resnet", **{"pretrained": False, "img_size": 32, **options}).cache_key()

    keys = {key(), key(seed=1), key(img_size=48), key(last_k=1), key(pretrained_cfg_overlay={"crop_mode": "squash"})}
    assert len(keys) == 5
    assert key() in keys
    assert (
        mtl.load_backbone("test_resnet", pretrained=False).configure(precision=torch.bfloat16).cache_key() not in keys
    )
