"""Damaged configs, splits, comparisons and checkpoints, and those of other programs: see stress_files.py."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
import transformers
from odd_cases import REFUSED, Case, Either, damages, flipped, put
from safetensors.torch import load, save
from tiny import VIT, Blobs, backbone

import mtl
from mtl.data import ClassSplit, FamilyRequest
from mtl.data.families.split import FamilyRule, FamilySplit
from mtl.fewshot.training.checkpoints import Checkpoints
from mtl.tools.comparison import MethodResult

CONFIG, WEIGHTS = "config.json", "generator.safetensors"


class Program:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path(tempfile.gettempdir(), "a pickle was executed"),)  # type: ignore[return-value]


@cache
def home() -> Path:
    """A saved learner, its split, a comparison, statistics, a checkpoint, a network of transformers."""
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    b = backbone(sites="none", levels="all")
    mtl.save_pretrained(
        mtl.MetaLearner(b, mtl.fewshot.make_generator("channelwise", b, per_channel=False)), folder / "learner"
    )
    ClassSplit(("a", "b"), ("c",), ("d",)).save(folder / "split.json")
    rule = FamilyRule("class", {"train": ("a",), "val": ("b",), "test": ("c",)})
    FamilySplit(FamilyRequest(), {"toys.class": rule}).save(folder / "families.json")
    rows = tuple(MethodResult(name, "baseline", np.array([0.5, 0.75]), 0.1, 0) for name in ("one", "two"))
    mtl.Comparison(setting="2-way", rows=rows, reference="one", families=("f", "g")).to_json(folder / "comparison.json")
    mtl.fewshot.FeatureStatistics(torch.zeros(3), torch.ones(3)).save(folder / "statistics.safetensors")
    bert = transformers.BertModel(transformers.BertConfig(**networks.SIZES))
    bert.save_pretrained(folder / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    (folder / "vit.safetensors").write_bytes(save(vit_weights()))
    return folder


def vit_weights() -> dict[str, torch.Tensor]:
    return {k: v.contiguous() for k, v in backbone().model.state_dict().items()}


def digits(values: torch.Tensor) -> list[float]:
    return [round(v, 4) for v in values.flatten()[:8].tolist()]


def learner_at(path: Path) -> list[float]:
    episode = Blobs(shots=2).sample(0)
    return digits(mtl.from_pretrained(path).adapt(episode.support).logits(episode.query.inputs))


def generator_at(path: Path) -> list[float]:
    b = backbone(sites="none", levels="all")
    episode = Blobs(shots=2).sample(0)
    return digits(mtl.load_generator(path, b).adapt(episode.support).logits(episode.query.inputs))


def bert_at(path: Path) -> list[float]:
    b = mtl.load_backbone(str(path))
    return digits(b(mtl.episode.Inputs.of(b.preprocess(["a b c"])).with_task_axis()))


def vit_at(path: Path) -> list[float]:
    b = mtl.load_backbone(**VIT, pretrained=False, checkpoint=str(path))
    return digits(b(torch.zeros(1, 1, 1, 16, 16)))


def spoilt(name: str, file: str, content: bytes | None, folder: Path) -> Path:
    """A copy of a folder in which one file is another one, or missing."""
    path = shutil.copytree(home() / name, folder / name)
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    return path


def odd_json(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Damages of a JSON object: of the file, its values, its keys and their types."""
    yield from (damage for damage in damages(content) if damage[0] != "all but one byte")
    for value in ("null", "[]", "3", '"text"', "{}", '{"a": 1}'):
        yield f"as {value}", value.encode()
    yield "depth", b"[" * 50_000
    yield "a comma too many", content.rstrip()[:-1] + b",}"
    yield "in UTF-16", content.decode().encode("utf-16")
    known = json.loads(content)
    for key in known:
        yield f"without {key}", json.dumps({k: v for k, v in known.items() if k != key}).encode()
        for value in (None, 3, "text", [], {}):
            if type(value) is not type(known[key]) and not (value == {} and known[key] == []):
                yield f"{key}={value!r}", json.dumps(known | {key: value}).encode()


def split_at(path: Path) -> Any:
    return ClassSplit.load(path)


def json_files() -> Iterator[Case]:
    readers: dict[str, Callable[[Path], Any]] = {
        "split.json": split_at,
        "families.json": FamilySplit.load,
        "comparison.json": lambda path: mtl.Comparison.from_json(path).table(),
    }
    for file, read in readers.items():
        content = (home() / file).read_bytes()
        right = read(home() / file)
        yield Case("results as JSON", file, put(file, content), read, right)
        for name, damage in odd_json(content):
            wanted = Either(right) if name == "without unseen" else REFUSED
            yield Case("results as JSON", f"{file}: {name}", put(file, damage), read, wanted)


def learners() -> Iterator[Case]:
    right = learner_at(home() / "learner")
    whole = partial(spoilt, "learner", CONFIG, (home() / "learner" / CONFIG).read_bytes())
    yield Case("saved learners", "whole", whole, learner_at, right)
    anywhere = generator_at(home() / "learner")
    yield Case("generators", "whole", whole, generator_at, anywhere)
    config, weights = ((home() / "learner" / name).read_bytes() for name in (CONFIG, WEIGHTS))
    tensors = load(weights)
    first = next(iter(tensors))
    odd: list[tuple[str, str, bytes | None]] = [(file, "missing", None) for file in (CONFIG, WEIGHTS)]
    odd += [(CONFIG, *damage) for damage in odd_json(config)]
    odd += [(WEIGHTS, *damage) for damage in damages(weights)]
    odd += [(WEIGHTS, *damage) for damage in flipped(weights[:400], 4)]
    odd += [
        (WEIGHTS, "a pickle", pickle.dumps(Program())),
        (WEIGHTS, "of another program", save({"encoder.weight": torch.zeros(3, 3)})),
        (WEIGHTS, "without tensors", save({})),
        (WEIGHTS, "one missing", save({k: v for k, v in tensors.items() if k != first})),
        (WEIGHTS, "one more", save(tensors | {"more": torch.zeros(2)})),
        (WEIGHTS, "another shape", save(tensors | {first: torch.zeros(7, 7)})),
        (WEIGHTS, "not finite", save(tensors | {first: torch.full_like(tensors[first], torch.nan)})),
        (WEIGHTS, "a large header", (2**62).to_bytes(8, "little") + weights[8:]),
    ]
    harmless = ("mtl", "extra", "without digest")  # 0.1.0 wrote no digest
    for file, name, content in odd:
        fine = file == CONFIG and any(word in name for word in harmless)
        for kind, read in (("saved learners", learner_at), ("generators", generator_at)):
            value = right if read is learner_at else anywhere
            wanted = Either(value) if fine or kind == "generators" else REFUSED
            yield Case(kind, f"{file}: {name}", partial(spoilt, "learner", file, content), read, wanted)
    for name, content in flipped(weights[400:], 6, seed=1):
        whole = weights[:400] + content
        write = partial(spoilt, "learner", WEIGHTS, whole)
        yield Case("saved learners", f"weights: {name}", write, learner_at, Either(right))


def networks_of_others() -> Iterator[Case]:
    right = bert_at(home() / "bert")
    whole = partial(spoilt, "bert", CONFIG, (home() / "bert" / CONFIG).read_bytes())
    yield Case("networks", "bert", whole, bert_at, right)
    weights = (home() / "bert" / "model.safetensors").read_bytes()
    for name, damage in damages(weights):
        yield Case("networks", f"bert, {name}", partial(spoilt, "bert", "model.safetensors", damage), bert_at, REFUSED)
    for name, damage in damages((home() / "bert" / CONFIG).read_bytes()):
        wanted = Either(right) if name == "all but one byte" else REFUSED  # it ends in an empty line
        yield Case("networks", f"bert's config, {name}", partial(spoilt, "bert", CONFIG, damage), bert_at, wanted)
    other = save({"a.weight": torch.zeros(2)})
    for file, content in (("model.safetensors", other), ("model.safetensors", None), (CONFIG, None)):
        name = f"bert, {file} {'of another program' if content else 'missing'}"
        yield Case("networks", name, partial(spoilt, "bert", file, content), bert_at, REFUSED)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if (home() / "bert" / file).is_file():
            write = partial(spoilt, "bert", file, b"{")
            yield Case("networks", f"bert, {file} damaged", write, bert_at, Either(right))
    content, tensors = (home() / "vit.safetensors").read_bytes(), vit_weights()
    yield Case("networks", "vit", put("vit.safetensors", content), vit_at, vit_at(home() / "vit.safetensors"))
    for name, damage in damages(content):
        yield Case("networks", f"vit, {name}", put("vit.safetensors", damage), vit_at, REFUSED)
    first = next(iter(tensors))
    for name, damage in {
        "of another program": other,
        "one missing": save({k: v for k, v in tensors.items() if k != first}),
        "another shape": save(tensors | {first: torch.zeros(3, 5)}),
    }.items():
        yield Case("networks", f"vit, {name}", put("vit.safetensors", damage), vit_at, REFUSED)
    yield Case("networks", "vit, a pickle", put("vit.pth", pickle.dumps(Program())), vit_at, REFUSED)


def checkpoints() -> Iterator[Case]:
    def write(change: Callable[[bytes], bytes], whole: bool, folder: Path) -> Path:
        made = Checkpoints(folder)
        for step in (1, 2) if whole else (2,):
            made.save({"step": step, "weights": torch.ones(5)})
        newest = max(folder.rglob("step-*.pt"))
        newest.write_bytes(change(newest.read_bytes()))
        return folder

    def step(folder: Path) -> int:
        state = Checkpoints(folder).newest()
        assert state is not None
        return state["step"]

    yield Case("checkpoints", "whole", partial(write, lambda c: c, True), step, 2)
    for name, _ in damages(b"12345678"):
        change = lambda content, name=name: dict(damages(content))[name]  # noqa: E731
        yield Case("checkpoints", f"{name}, another there", partial(write, change, True), step, Either(1))
        yield Case("checkpoints", f"{name}, alone", partial(write, change, False), step, REFUSED)
    for seed in range(6):
        change = lambda content, seed=seed: next(flipped(content, 1, seed))[1]  # noqa: E731
        yield Case("checkpoints", f"a bit, {seed}", partial(write, change, True), step, Either(1))
    for name, damage in damages((home() / "statistics.safetensors").read_bytes()):
        read = lambda path: digits(mtl.fewshot.FeatureStatistics.load(path).std)  # noqa: E731
        yield Case("checkpoints", f"statistics, {name}", put("statistics.safetensors", damage), read, REFUSED)


def cases() -> list[Case]:
    return [*json_files(), *learners(), *networks_of_others(), *checkpoints()]
