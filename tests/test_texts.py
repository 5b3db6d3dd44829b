"""Texts: every format, every refusal, masked docstrings, and episodes that are what they say."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from small_data import pictures
from tokenizers import Tokenizer, models, pre_tokenizers

import mtl
from mtl.data.embedded.docstrings import _docstrings, load_docstrings, mask_names
from mtl.data.own.texts import open_texts

CLASSES = ["ash", "birch", "cedar", "elm"]
ROWS = [(f"{c} number {'i' * (i + 1)}", c) for c in CLASSES for i in range(6)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """``datasets`` copies tables into a cache; keep it out of the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_csv(file: Path, rows=ROWS, header=("text", "label")) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def write_jsonl(file: Path, rows=ROWS) -> Path:
    file.write_text("\n".join(json.dumps({"text": t, "label": c}) for t, c in rows) + "\n")
    return file


def write_folder(root: Path, rows=ROWS) -> Path:
    for i, (text, c) in enumerate(rows):
        (root / c).mkdir(parents=True, exist_ok=True)
        (root / c / f"{i:02}.txt").write_text(f"{text}\n")
    return root


def table(rows=ROWS) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=CLASSES)})
    return datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [c for _, c in rows]}, features)


def as_parquet(root):
    table().to_parquet(root / "t.parquet")
    return root / "t.parquet"


def as_disk(root):
    table().save_to_disk(root / "disk")
    return root / "disk"


FORMATS = {
    "folder": lambda root: write_folder(root / "f"),
    "csv": lambda root: write_csv(root / "t.csv"),
    "csv folder": lambda root: write_csv(root / "t.csv").parent,
    "jsonl": lambda root: write_jsonl(root / "t.jsonl"),
    "jsonl folder": lambda root: write_jsonl(root / "t.jsonl").parent,
    "parquet": as_parquet,
    "disk": as_disk,
    "object": lambda root: datasets.DatasetDict(train=table()),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_collection(form, tmp_path):
    texts = open_texts(FORMATS[form](tmp_path))
    assert texts.class_names == tuple(CLASSES)
    assert [(t, c) for c in CLASSES for t in texts.of_class(c)] == ROWS
    assert (texts.parts, texts.skipped) == ({}, ())


def test_hub_id_goes_to_datasets(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(train=table()))
    assert len(open_texts("owner/trees")) == 24


def test_named_columns(tmp_path):
    file = write_csv(tmp_path / "t.csv", [(t, c, "x") for t, c in ROWS], ("note", "species", "label"))
    assert open_texts(file, text_column="note", label_column="species").class_names == tuple(CLASSES)
    with pytest.raises(ValueError, match=r"no columns that may be the text among \['note'.*name one with text_column="):
        open_texts(file)


def test_parts_come_from_files_and_folders(tmp_path):
    for part, rows in (("train", ROWS[:12]), ("val", ROWS[12:18]), ("test", ROWS[18:])):
        write_jsonl(tmp_path / f"{part}.jsonl", rows)
        write_folder(tmp_path / "folders" / part, rows)
    expected = {"train": ("ash", "birch"), "val": ("cedar",), "test": ("elm",)}
    assert open_texts(tmp_path / "folders").parts == expected
    (tmp_path / "folders").rename(tmp_path.parent / "away")
    assert open_texts(tmp_path).parts == expected


def test_what_cannot_be_used_is_named_and_left_out(tmp_path):
    odd = [("  ", "ash"), (ROWS[0][0], "ash"), (ROWS[6][0], "elm")]  # blank, a repeat, a second class
    with pytest.warns(UserWarning, match=r"3 of 27 texts .*text 6, .*in 2 classes.*text 24, counted from 0 \(blank\)"):
        texts = open_texts(write_csv(tmp_path / "t.csv", [*ROWS, *odd]))
    assert [len(texts.items[c]) for c in CLASSES] == [6, 5, 6, 6]
    with pytest.raises(ValueError, match=r'3 of 27 .*on_unreadable="skip"'):
        open_texts(tmp_path / "t.csv", on_unreadable="raise")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda r: write_csv(r / "t.csv", [("a", "x")]), "1 classes.*at least two"),
        (lambda r: write_csv(r / "t.csv", [("a", "x"), ("b", "")]), "1 of 2 labels are missing"),
        (lambda r: write_csv(r / "t.csv", [("a", "0.0"), ("b", "1.0")]), "labels are fractions"),
        (lambda r: write_folder(r, [("a", "x")]), "one sub-folder, 'x'; expected one per class"),
        (lambda r: write_folder(r / "f", [("a", "x"), ("b", "y")]).joinpath("x", "00.txt"), "is a .txt file"),
        (lambda r: r, "is empty; expected one sub-folder of texts"),
        (lambda r: pictures(r / "p", 2, 1), "p holds no text with a label; expected texts of two classes at least"),
    ],
)
def test_refusals(write, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_texts(write(tmp_path))


@pytest.mark.parametrize(("line", "message"), [("{", "line 2 is not JSON"), ("[1]", "line 2 is a list")])
def test_bad_lines_are_numbered(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": "x"}\n' + line)
    with pytest.raises(ValueError, match=message):
        open_texts(tmp_path / "t.jsonl")


# docstrings


def test_docstrings_are_many_distinct_and_of_one_module_each():
    docstrings = load_docstrings()
    assert len(docstrings) > 3000
    assert len({d.text.lower() for d in docstrings}) == len(docstrings)
    split = mtl.data.docstring_split(0)
    parts = [set(p) for p in split.parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert mtl.data.docstring_split(1) != split
    assert all(len([d for d in docstrings if d.module == m]) >= 20 for m in split.test)


def test_names_of_modules_and_identifiers_are_masked():
    for d in load_docstrings():
        assert d.module == "this" or d.module not in d.text.lower().split(), d
    masked = mask_names(
        "Parse XMLFile with parse_all(x), a Parser or some file; a JSON one, too.", {"parser"}, {"Parser"}
    )
    assert masked == "_ with _(x), a _ or some file; a JSON one, too."


SOURCE = """
'Grow many kinds of plants.'
raise SystemExit

class Ash:
    'Leaves fall late in autumn.'

    def cut(self):
        '>>> Ash().cut() # doctest: +SKIP'

    def water(self):
        '''Pour
        some water on it.

        Not too much of it.'''
"""


def test_sources_are_read_not_imported(tmp_path):
    (tmp_path / "trees.py").write_text(SOURCE)
    found = [(d.text, d.owner) for d in _docstrings(tmp_path / "trees.py", "trees.py")]
    assert found == [
        ("Grow many kinds of plants.", "trees.py"),
        ("Leaves fall late in autumn.", "trees.py Ash"),
        ("Pour some water on it.", "trees.py Ash"),
    ]


# episodes


def preprocess(texts: list[str]) -> dict[str, torch.Tensor]:
    """A token per letter."""
    tokenizer = Tokenizer(models.WordLevel({chr(i): i - 96 for i in range(97, 123)} | {"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.enable_padding(pad_id=0)
    found = tokenizer.encode_batch(texts)
    ids, mask = ([getattr(e, k) for e in found] for k in ("ids", "attention_mask"))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def texts_of(inputs: dict[str, torch.Tensor], task: int = 0) -> list[str]:
    pairs = zip(inputs["input_ids"][task], inputs["attention_mask"][task], strict=True)
    return ["".join(chr(96 + i) for i in ids[mask > 0]) for ids, mask in pairs]


@pytest.fixture
def collection(tmp_path):
    return open_texts(write_csv(tmp_path / "t.csv"))


def tasks(collection, **options) -> mtl.ClassTasks:
    return mtl.ClassTasks(
        collection, CLASSES, **{"preprocess": preprocess, "ways": 3, "shots": 2, "queries": 2} | options
    )


def test_an_episode_holds_the_texts_it_drew(collection):
    source = tasks(collection)
    for index in range(5):
        episode, draw = source.sample(index), source.draw(index)
        for examples, places in ((episode.support, draw.support), (episode.query, draw.query)):
            want = [collection.texts[i].replace(" ", "`") for i in places]
            assert texts_of(examples.inputs) == want
            assert examples.inputs["input_ids"].shape[2] == max(map(len, want)), "padded to the longest, no further"
        assert not set(draw.support) & set(draw.query)
        classes = [[collection.texts[i].split()[0] for i in side] for side in (draw.support, draw.query)]
        assert classes[0] == classes[1]
        assert episode.support.labels.tolist() == [[0, 0, 1, 1, 2, 2]]


def test_an_episode_depends_on_seed_and_index_alone(collection):
    once, again = (tasks(collection) for _ in range(2))
    again.sample(3)
    assert torch.equal(once.sample(7).query.inputs["input_ids"], again.sample(7).query.inputs["input_ids"])
    assert tasks(collection, seed=1).draw(7) != once.draw(7)


def test_texts_are_tokenised_once(collection):
    calls = []
    cache = mtl.data.InputCache(lambda texts: calls.extend(texts) or preprocess(texts))
    sources = [tasks(collection, preprocess=cache, shots=s) for s in (1, 2)]
    for source in sources:
        for index in range(20):
            source.sample(index)
    assert len(calls) == len(set(calls)) == 24


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda texts: torch.zeros(len(texts), 3),
            r"into float32 \(6, 3\); expected tokens by name with an attention_mask",
        ),
        (
            lambda texts: {"attention_mask": torch.ones(1, 4)},
            r"attention_mask: float32 \(1, 4\).*each \(n, length, ...\)",
        ),
        (lambda texts: {"attention_mask": torch.arange(2).expand(len(texts), 2)}, "pads at the left"),
    ],
)
def test_tokens_are_checked(collection, wrong, message):
    with pytest.raises(ValueError, match=message):
        tasks(collection, preprocess=wrong, queries=2).sample(0)


def test_small_classes_are_named(collection):
    with pytest.raises(ValueError, match=r"take 15 texts of each class.*'ash' has 6.*--shots 3 --queries 3"):
        tasks(collection, shots=5, queries=10)


def test_episodes_of_unequal_length_stack(collection):
    source = tasks(collection)
    episodes = [source.sample(i) for i in range(6)]
    lengths = {e.query.inputs["input_ids"].shape[2] for e in episodes}
    assert len(lengths) > 1
    [(places, stacked)] = mtl.stack_by_shape(episodes)
    assert stacked.query.inputs["input_ids"].shape == (6, 6, max(lengths))
    for i in places:
        assert texts_of(stacked.query.inputs, i) == texts_of(episodes[i].query.inputs)


def test_without_a_mask_unequal_lengths_do_not_stack(collection):
    episodes = [tasks(collection).sample(i) for i in range(6)]
    episodes = [
        replace(e, query=mtl.Examples(e.query.inputs.without("attention_mask"), e.query.labels)) for e in episodes
    ]
    with pytest.raises(ValueError, match=r"unequal lengths .* without an attention_mask"):
        mtl.Episode.stack(episodes)


def test_docstring_tasks_keep_to_their_modules():
    train = mtl.DocstringTasks("train", preprocess=preprocess, ways=3, shots=2, queries=3, families=("module", "owner"))
    assert [train.sample(i).families for i in range(2)] == [("module",), ("owner",)]
    modules = set(mtl.data.docstring_split(0).train)
    for source in train.sources:
        assert {name.split("/")[0].split()[0].removesuffix(".py") for name in source.collection.items} <= modules
    with pytest.raises(ValueError, match="part='dev': expected one of train, val, test"):
        mtl.DocstringTasks("dev", preprocess=preprocess)
    with pytest.raises(ValueError, match=r"families=\('topic',\): expected some of module, file, owner"):
        mtl.DocstringTasks("val", preprocess=preprocess, families=("topic",))
