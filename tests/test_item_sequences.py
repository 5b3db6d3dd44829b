"""Images and texts are taken in whatever people keep them, and pass the network a few at a time."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import backbone
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mtl
from mtl.fewshot.adapted import Adapted
from mtl.items import ItemError, as_images, as_items, as_texts
from mtl.networks.backbones import passes, prepared_inputs

SHADES = [np.full((16, 16, 3), 20 * i, np.uint8) for i in range(6)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of three grey pictures, the second one in a folder of its own."""
    for i, shade in enumerate(SHADES):
        path = tmp_path / "pictures" / ("dark" if i < 3 else "light/more") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shade).save(path)
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def learner() -> mtl.MetaLearner:
    return mtl.MetaLearner(backbone(sites="none"))


@pytest.fixture(scope="module")
def adapted(learner) -> Adapted:
    return learner.adapt({"dark": SHADES[:3], "light": SHADES[3:]})


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> mtl.MetaLearner:
    """Reads texts."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26)), *map(str, range(19))]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return mtl.MetaLearner(networks.build("bert", folder))


def forms(folder: Path) -> dict[str, Any]:
    """The same six pictures."""
    paths = sorted(folder.rglob("*.png"))
    batch = np.stack(SHADES)
    return {
        "list": SHADES,
        "tuple": tuple(SHADES),
        "iterator": iter(SHADES),
        "generator": (Image.open(p) for p in paths),
        "paths": paths,
        "strings": [*map(str, paths)],
        "folder": folder,
        "folder by name": str(folder),
        "collection": mtl.open_images(folder),
        "one class": [*mtl.open_images(folder).of_class("dark"), *mtl.open_images(folder).of_class("light")],
        "array": batch,
        "floats": batch / 255,
        "tensor": torch.from_numpy(batch).permute(0, 3, 1, 2),
        "series": pd.Series([*map(str, paths)]),
        "array of paths": np.array([*map(str, paths)]),
    }


FORMS = [
    "list", "tuple", "iterator", "generator", "paths", "strings", "folder", "folder by name", "collection", "one class",
    "array", "floats", "tensor", "series", "array of paths",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_images_mean_the_same(folder, learner, adapted, form):
    probabilities = adapted.predict_proba(SHADES)
    assert torch.equal(adapted.predict_proba(forms(folder)[form]), probabilities)
    expected = [adapted.class_names[i] for i in probabilities.argmax(1)]
    assert adapted.predict(forms(folder)[form]) == expected
    assert [each.label for each in adapted.predict_each(forms(folder)[form])] == expected
    again = learner.adapt({"dark": SHADES, "light": forms(folder)[form]})
    assert torch.equal(
        again.predict_proba(SHADES), learner.adapt({"dark": SHADES, "light": SHADES}).predict_proba(SHADES)
    )


@pytest.mark.parametrize(
    "one",
    [
        lambda folder: folder / "dark" / "0.png",
        lambda folder: str(folder / "dark" / "0.png"),
        lambda folder: (folder / "dark" / "0.png").read_bytes(),
        lambda folder: Image.open(folder / "dark" / "0.png"),
        lambda folder: SHADES[0],
        lambda folder: torch.from_numpy(SHADES[0]).permute(2, 0, 1),
        lambda folder: SHADES[0][..., 0],
    ],
)
def test_one_image_alone_is_a_list_of_one(folder, adapted, one):
    assert adapted.predict(one(folder)) == adapted.predict(SHADES[:1])


def test_a_support_set_is_a_folder_or_a_collection_too(folder, learner):
    expected = learner.adapt({"dark": SHADES[:3], "light": SHADES[3:]})
    for support in (folder, str(folder), mtl.open_images(folder)):
        found = learner.adapt(support)
        assert found.class_names == ("dark", "light")
        assert torch.equal(found.predict_proba(SHADES), expected.predict_proba(SHADES))
        assert torch.equal(learner.labelled(support).inputs.raw, learner.backbone.preprocess(SHADES)[None])


@pytest.mark.parametrize("sites", ["none", "norm"])
def test_adapting_without_training_takes_the_same(folder, sites, monkeypatch, tmp_path):
    monkeypatch.setattr(mtl.fewshot.ready, "ASSETS", tmp_path)
    b = backbone(sites=sites, levels="all")
    generator = mtl.fewshot.make_generator("channelwise", b, per_channel=False)
    mtl.fewshot.save_ready(mtl.MetaLearner(b, generator), tmp_path / "universal")
    expected = mtl.adapt(b, {"dark": SHADES[:3], "light": SHADES[3:]}, SHADES).predict_proba(SHADES)
    for support, unlabelled in ((folder, folder), (mtl.open_images(folder), iter(SHADES))):
        assert torch.equal(mtl.adapt(b, support, unlabelled).predict_proba(SHADES), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"expected a list of images, paths or a folder, or one of them; got None"),
        (7, r"got a int"),
        (set("ab"), r"a set, which has no order"),
        (pd.DataFrame({"path": ["a.png"]}), r"a whole table: pass one of its columns"),
        (Path("nowhere.png"), r"item 0: nowhere.png cannot be decoded \(No such file or directory\)"),
        ("names.csv", r"names.csv is a table or an archive, not an image; open it with mtl.open_images"),
        (np.zeros((5, 16, 16)), r"an array of shape \(5, 16, 16\) .*several grey ones as a list"),
        (np.zeros((2, 3, 16, 16)), r"item 0: an array \(3, 16, 16\) .*channels are first here"),
        (torch.zeros(2, 16, 16, 3), r"item 0: a tensor \(16, 16, 3\) .*channels are last here"),
        (torch.randn(2, 3, 16, 16), r"\(2, 3, 16, 16\) with negative values: preprocessed images need a task axis"),
        (255 * torch.rand(2, 3, 16, 16), r"item 0: .*floats go from 0 to 1"),
        ([SHADES[0], "nowhere.png"], r"item 1: nowhere.png cannot be decoded"),
        ([SHADES[0], None], r"item 1: a NoneType cannot be decoded"),
    ],
)
def test_what_holds_no_images_is_refused_in_one_line(adapted, given, message):
    for predict in (adapted.predict, adapted.predict_proba):
        with pytest.raises(ValueError, match=message) as caught:
            predict(given)
        assert "\n" not in str(caught.value)


def test_no_items_have_no_predictions(adapted):
    assert adapted.predict([]) == adapted.predict(iter(())) == [*adapted.predict_each([])] == []
    assert adapted.predict_proba([]).shape == (0, 2)
    with pytest.raises(ValueError, match="no image was given"):
        as_images([])


def test_an_unreadable_item_is_named_by_its_place(adapted, learner, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    items = [*SHADES * 20, tmp_path / "broken.png"]
    with pytest.raises(ItemError, match=r"item 120: .*broken\.png cannot be decoded") as caught:
        adapted.predict(items)
    assert str(copy.copy(caught.value)) == str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(ValueError, match=r"class 'light', item 1: .*broken\.png cannot be decoded"):
        learner.adapt({"dark": SHADES, "light": [SHADES[0], tmp_path / "broken.png"]})


def test_other_files_in_a_folder_are_counted(folder, adapted):
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").write_text("")
    with pytest.warns(UserWarning, match=r"1 files are left out, which are no images \(1 \.txt\)"):
        assert len(adapted.predict(folder)) == 6


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (None, "expected {class name: items}, a folder of class folders, or a collection; got None"),
        ([SHADES], "got a list"),
        ({}, "at least two classes with an example each; got 0 classes"),
        ({"a": SHADES}, "got 1 classes"),
        ({"a": SHADES, "b": []}, r"got 2 classes, \['b'\] without any"),
        ({"a": SHADES, "b": iter(())}, r"got 2 classes, \['b'\] without any"),
        ({"a": SHADES, "b": None}, "class 'b': expected a list of images"),
    ],
)
def test_what_is_no_support_set_is_refused_in_one_line(learner, support, message):
    with pytest.raises(ValueError, match=message):
        learner.adapt(support)


# --- texts ---


def test_a_string_is_one_text(reader):
    texts = reader.adapt({"a": "h e l l o", "b": "b y e"})
    same = reader.adapt({"a": ["h e l l o"], "b": ["b y e"]})
    assert texts.support.labels.shape == (1, 2)
    assert torch.equal(texts.predict_proba("m y package"), same.predict_proba(["m y package"]))
    assert texts.predict("m y package") == texts.predict(["m y package"])
    assert len(texts.predict("m y package")) == 1
    assert reader.backbone.preprocess("m y package")["input_ids"].shape[0] == 1


def test_all_forms_of_texts_mean_the_same(reader, tmp_path):
    texts = ["a b", "c", "d e f"]
    adapted = reader.adapt({"a": texts, "b": "z"})
    expected = adapted.predict_proba(texts)
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    (tmp_path / "t.csv").write_text("text,label\na b,x\nc,x\nd e f,y\n")
    collection = mtl.open_texts(tmp_path / "t.csv")
    for given in (tuple(texts), iter(texts), pd.Series(texts), np.array(texts), paths, collection):
        assert torch.equal(adapted.predict_proba(given), expected), type(given)
    assert reader.adapt(tmp_path / "t.csv").class_names == reader.adapt(collection).class_names == ("x", "y")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "expected a list of strings, or one of them; got None"),
        (b"bytes", r"a bytes is no text; pass strings \(bytes: data.decode\(\)\)"),
        (Image.new("L", (4, 4)), "is no text"),
        (["a", 3], "item 1: a int, but this network reads texts"),
        (["a", None], "item 1: a missing value, but this network reads texts"),
        (pd.Series(["a", float("nan")]), "item 1: a missing value"),
        (pd.DataFrame({"text": ["a"]}), "a whole table"),
        (np.zeros(3), "expected strings"),
        (
            Path("new.txt"),
            r"new.txt is a path: pass mtl.data.read_texts\('new.txt'\) .*or \['new.txt'\] for these very",
        ),
        (["a", Path("new.csv")], "item 1: new.csv is a table or an archive, not one text"),
        (["a", Path("new.txt")], r"item 1: new.txt cannot be read \(No such file or directory\)"),
    ],
)
def test_what_holds_no_texts_is_refused_in_one_line(reader, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_texts(given)
    assert "\n" not in str(caught.value)


def test_a_string_that_names_a_file_could_mean_two_things(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_texts("new.txt") == ["new.txt"]
    (tmp_path / "new.txt").write_text("a text\nanother")
    with pytest.raises(ValueError, match=r"pass mtl\.data\.read_texts\('new\.txt'\)"):
        as_texts("new.txt")
    assert as_texts(["new.txt"]) == ["new.txt"]
    assert mtl.data.read_texts("new.txt") == ["a text", "another"]
    assert as_texts([tmp_path / "new.txt"]) == ["a text\nanother"]
    (tmp_path / "late").mkdir()
    for words in ("late", "and/or " * 90, "a\0b", "either/or"):
        assert as_texts(words) == [words]


def test_a_text_without_tokens_is_refused(tmp_path):
    """A language model that begins no text with a token of its own would answer by padding."""
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, **{chr(97 + i): i + 1 for i in range(26)}}, "<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    b = networks.build("gpt2", tmp_path)
    fast.save_pretrained(tmp_path)
    with pytest.raises(ItemError, match=r"item 1: '' has no tokens; leave it out"):
        b.preprocess(["a b", "", "b"])
    with pytest.raises(ItemError, match="item 0: ' ' has no tokens"):
        b.preprocess(" ")


def test_a_grey_network_says_that_it_sees_no_colours():
    grey = backbone()
    with pytest.warns(UserWarning, match="their colours are lost"):
        grey.preprocess([Image.new("RGB", (16, 16), (200, 20, 20))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grey.preprocess([Image.new("RGB", (16, 16), (200, 190, 200))])


def test_kinds_are_not_mixed_up(reader, learner, folder, tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na b,x\nc,y\n")
    with pytest.raises(ValueError, match="a collection of texts, but this network reads images"):
        learner.adapt(mtl.open_texts(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match="a collection of images, but this network reads texts"):
        reader.adapt(mtl.open_images(folder))


def test_a_network_of_another_kind_gets_its_items_as_they_are():
    assert as_items("one", "items") == ["one"]
    assert as_items(rows := [1, 2], "items") is rows
    assert [row.tolist() for row in as_items(np.eye(2), "items")] == [[1, 0], [0, 1]]


# --- a few at a time ---


def test_items_are_read_only_as_far_as_they_are_asked_for(adapted):
    drawn: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            drawn.append(len(drawn))
            yield SHADES[len(drawn) % 6]

    answers = adapted.predict_each(endless(), batch_size=4)
    assert not drawn
    found = [next(answers) for _ in range(9)]
    assert len(drawn) == 12
    assert found[0].label == adapted.predict(SHADES[1])[0]
    assert 0 < found[0].probability <= 1


def test_the_size_of_a_batch_changes_nothing(adapted, learner):
    items = SHADES * 3
    whole = adapted.predict_proba(items, batch_size=99)
    for size in (1, 7):
        torch.testing.assert_close(adapted.predict_proba(items, batch_size=size), whole)
        assert adapted.predict(items, batch_size=size) == adapted.predict(items)
        assert learner.adapt({"dark": SHADES[:3], "light": SHADES[3:]}).predict(items) == learner.predict(items)
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        adapted.predict(items, batch_size=0)


@pytest.mark.parametrize(("sites", "levels"), [("none", "all"), ("norm", "last")])
def test_many_examples_pass_the_network_a_few_at_a_time(monkeypatch, sites, levels):
    """Support sets and tensors, wherever no gradient needs them all at once: memory no longer grows with them."""
    b = backbone(sites=sites, levels=levels)
    learner = mtl.MetaLearner(b, inner_steps=0)
    support = mtl.Examples(torch.randn(2, 40, 1, 16, 16), torch.arange(2).repeat(2, 20))
    asked = torch.randn(2, 50, 1, 16, 16)
    at_once = learner.adapt(support, cross_validate=True)
    whole, probabilities = at_once.logits(asked), at_once.predict_proba(asked)
    monkeypatch.setattr(prepared_inputs, "VALUES_PER_PASS", 2 * 5 * 256)
    passed: list[int] = []
    handle = b.model.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    assert prepared_inputs.examples_per_pass(mtl.Inputs.of(asked)) == 5
    found = learner.adapt(support, cross_validate=True)
    torch.testing.assert_close(found.logits(asked), whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.predict(asked), whole.argmax(-1))
    torch.testing.assert_close(found.predict_proba(asked), probabilities, rtol=1e-4, atol=1e-4)
    handle.remove()
    assert max(passed) <= 20, "one example of every task in each of ten folds at least"


def test_a_prefix_too_large_to_keep_is_computed_again(monkeypatch):
    b = backbone(last_k=1)
    inputs = torch.randn(1, 12, 1, 16, 16)
    with torch.no_grad():
        expected = b(b.prepare(inputs))
        monkeypatch.setattr(prepared_inputs, "VALUES_PER_PASS", 5 * 256)
        assert b.prepare(inputs).stored is not None
        monkeypatch.setattr(passes, "RECORDED_BYTES", 100)
        assert b.prepare(inputs).stored is None
        torch.testing.assert_close(b(b.prepare(inputs)), expected)
    assert b.prepare(inputs).stored is not None, "training is as it was"


def test_texts_pass_a_few_at_a_time(reader, monkeypatch):
    texts = [chr(97 + i % 26) + " b" * (i % 5) for i in range(40)]
    adapted = reader.adapt({"a": texts[:5], "b": texts[5:9]}, steps=0)
    inputs = {k: v[None] for k, v in reader.backbone.preprocess(texts).items()}
    whole = adapted.logits(inputs)
    monkeypatch.setattr(prepared_inputs, "TOKENS_PER_PASS", 6 * inputs["input_ids"].shape[-1])
    passed: list[int] = []
    embed = reader.backbone.model.get_input_embeddings()
    handle = embed.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    torch.testing.assert_close(adapted.logits(inputs), whole)
    handle.remove()
    assert max(passed) == 6


def test_all_images_are_decoded_by_one_function(folder, learner, adapted, monkeypatch):
    seen: list[Any] = []
    decode = mtl.items.decoding._converted
    monkeypatch.setattr(mtl.items.decoding, "_converted", lambda *args: (seen.append(args), decode(*args))[1])
    uses = {
        "open": lambda: [*mtl.open_images(folder, verify="off")],
        "verify": lambda: mtl.open_images(folder, verify="decode"),
        "predict": lambda: adapted.predict(folder),
        "adapt": lambda: learner.labelled(folder),
        "preprocess": lambda: learner.backbone.preprocess(SHADES),
    }
    for name, use in uses.items():
        seen.clear()
        use()
        assert len(seen) >= 6, name


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
def test_sizes_of_episodes_may_be_any_whole_number(kind):
    expected = mtl.GlyphTasks("test", ways=3, shots=(1, 2), queries=2).sample(4)
    found = mtl.GlyphTasks("test", ways=kind(3), shots=(kind(1), kind(2)), queries=kind(2)).sample(4)
    assert torch.equal(found.support.inputs.raw, expected.support.inputs.raw)
    assert type(found.ways) is int


@pytest.mark.parametrize("ways", [3.0, "3", None, (3,), (3, 4.0), 1, (5, 3)])
def test_other_sizes_of_episodes_are_refused(ways):
    with pytest.raises(ValueError, match=r"ways=.*: expected an integer of at least 2, or \(low, high\)"):
        mtl.GlyphTasks("test", ways=ways)
