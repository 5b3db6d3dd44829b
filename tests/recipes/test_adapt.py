"""adapt.py turns a generator and a few labelled examples into a checkpoint and predictions."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import adapt
import networks
import pytest
import transformers
from PIL import Image
from safetensors.torch import load_file
from small_data import pictures, text_table
from tiny import backbone

import mtl


@pytest.mark.parametrize("form", ["lines.txt", "table.csv", "folder"])
def test_adapt_predicts_texts(tmp_path, encoder, form):
    b = mtl.load_backbone(encoder)
    mtl.save_pretrained(mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width)), tmp_path / "generator")
    table = text_table(tmp_path / "t.csv", 3, 3)
    new = tmp_path / form
    if form == "lines.txt":
        new.write_text("the first\nthe second\n")
    elif form == "table.csv":
        new.write_text("id,note\n7,the first\n8,the second\n")
    else:
        new.mkdir()
        (new / "a.txt").write_text("the first")
        (new / "b.txt").write_text("the second")
    config = adapt.Config(
        str(tmp_path / "generator"), texts=str(table), text_column="note", label_column="kind", predict=str(new),
        out=str(tmp_path / "out"), device="cpu",
    )  # fmt: skip
    rows = adapt.main(config)
    assert [(r["number"], r["text"]) for r in rows] == [("0", "the first"), ("1", "the second")]
    assert list(csv.DictReader((tmp_path / "out" / "predictions.csv").open())) == rows
    plain = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    head = load_file(tmp_path / "out" / "head.safetensors")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(["the first"], return_tensors="pt")
    logits = plain(**tokens).last_hidden_state.mean(1) @ head["weight"].T + head["bias"]
    assert rows[0]["label"] == f"class {int(logits.argmax())}"


def test_adapt_wants_one_kind_of_examples(tmp_path):
    with pytest.raises(ValueError, match="either --images or --texts"):
        adapt.main(adapt.Config("g", out=str(tmp_path / "o")))


@pytest.fixture
def generator(tmp_path) -> str:
    b = backbone()
    mtl.save_pretrained(mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width)), tmp_path / "generator")
    return str(tmp_path / "generator")


def test_adapt_writes_a_checkpoint_and_predictions(tmp_path, generator, capsys):
    images, out = pictures(tmp_path / "labelled", 3, 3), tmp_path / "out"
    (images / "class 0" / "0.png").rename(tmp_path / "labelled" / "class 0" / "zero.png")
    unlabelled = pictures(tmp_path / "unlabelled", 3, 2)
    (unlabelled / "broken.png").write_bytes(b"no image")
    config = adapt.Config(generator, str(images), str(out), predict=str(unlabelled), device="cpu", batch_size=4)
    rows = adapt.main(config)
    assert len(rows) == 6
    assert {r["label"] for r in rows} <= {"class 0", "class 1", "class 2"}
    assert list(csv.DictReader((out / "predictions.csv").open())) == rows
    printed = capsys.readouterr().out
    assert "9 of 9 predictions agree" in printed
    assert "broken.png" in printed


def test_adapt_sees_all_images_alike(tmp_path, generator, monkeypatch):
    """Cameras store pictures on their side and note it down: labelled and unlabelled ones are both turned upright."""
    lying = Image.linear_gradient("L")
    exif = lying.getexif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    for name, stored in (("across", lying.rotate(90)), ("down", lying)):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        stored.save(tmp_path / "labelled" / name / "0.png")
    (tmp_path / "new").mkdir()
    lying.rotate(90).save(tmp_path / "new" / "0.png", exif=exif)  # upright, this is the class "down"
    config = adapt.Config(
        generator, str(tmp_path / "labelled"), str(tmp_path / "out"), str(tmp_path / "new"), steps=0, device="cpu"
    )
    decoded: list[Any] = []
    decode = mtl.items.decoding._converted
    monkeypatch.setattr(mtl.items.decoding, "_converted", lambda *args: (decoded.append(args), decode(*args))[1])
    assert [r["label"] for r in adapt.main(config)] == ["down"]
    assert len(decoded) >= 3, "by the one function"


def test_adapt_takes_the_column_that_is_named(tmp_path, generator):
    """Of images as of texts."""
    images = pictures(tmp_path / "images", 2, 3)
    rows = [f"{c}/{i}.png,{kind}" for c, kind in (("class 0", "oak"), ("class 1", "elm")) for i in range(3)]
    table = images / "table.csv"
    table.write_text("\n".join(["picture,species", *rows]))
    config = adapt.Config(
        generator, str(table), str(tmp_path / "out"), str(images / "class 0" / "0.png"), device="cpu",
        image_column="picture", label_column="species",
    )  # fmt: skip
    assert [r["filename"] for r in adapt.main(config)] == ["0.png"]
    assert {r["label"] for r in csv.DictReader((tmp_path / "out" / "predictions.csv").open())} <= {"oak", "elm"}


@pytest.fixture
def universal(tmp_path, monkeypatch) -> None:
    """Stands in for the generator that comes with the package."""
    monkeypatch.setattr(mtl.fewshot.ready, "ASSETS", tmp_path)
    b = backbone(sites="none", levels="all")
    generator = mtl.fewshot.make_generator("channelwise", b, per_channel=False)
    mtl.fewshot.save_ready(mtl.MetaLearner(b, generator), tmp_path / "universal")


@pytest.mark.usefixtures("universal")
def test_adapt_needs_no_training(tmp_path, monkeypatch, capsys):
    """Any network by name; there is no checkpoint of several levels, and that is said."""
    load = mtl.load_backbone
    monkeypatch.setattr(mtl, "load_backbone", lambda name, **how: load(name, pretrained=False, **networks.SMALL, **how))
    images, new = pictures(tmp_path / "labelled", 3, 3), pictures(tmp_path / "new", 3, 2)
    config = adapt.Config(
        backbone="test_resnet", images=str(images), out=str(tmp_path / "out"), predict=str(new), device="cpu"
    )
    rows = adapt.main(config)
    assert len(rows) == 6
    assert {r["label"] for r in rows} <= {"class 0", "class 1", "class 2"}
    assert list(csv.DictReader((tmp_path / "out" / "predictions.csv").open())) == rows
    printed = capsys.readouterr().out
    assert "3 folds, 9 left-out examples" in printed
    assert "no checkpoint: test_resnet reads" in printed
    with pytest.raises(ValueError, match=r"a plain checkpoint classifies the last only.*--predict"):
        adapt.main(replace(config, out=str(tmp_path / "other"), predict=None))


@pytest.mark.usefixtures("universal")
def test_adapt_needs_no_training_for_texts(tmp_path, encoder):
    (tmp_path / "new.txt").write_text("the first\nthe second\n")
    table = text_table(tmp_path / "t.csv", 3, 3)
    config = adapt.Config(
        backbone=str(encoder), texts=str(table), text_column="note", label_column="kind", device="cpu",
        predict=str(tmp_path / "new.txt"), out=str(tmp_path / "out"),
    )  # fmt: skip
    assert [r["text"] for r in adapt.main(config)] == ["the first", "the second"]


def test_adapt_says_what_is_wrong(tmp_path, generator):
    images = str(pictures(tmp_path / "labelled", 3, 2))
    with pytest.raises(FileNotFoundError, match="not a saved learner"):
        adapt.main(adapt.Config(str(tmp_path / "nowhere"), images))
    with pytest.raises(ValueError, match="a network with --backbone"):
        adapt.main(adapt.Config(images=images))
    with pytest.raises(ValueError, match="two at least"):
        adapt.main(adapt.Config(generator, str(pictures(tmp_path / "one", 1, 2))))
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        adapt.main(adapt.Config(generator, images, str(tmp_path / "new"), predict=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no image there"):
        adapt.main(adapt.Config(generator, images, str(tmp_path / "new"), predict=str(tmp_path / "empty")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError):
        adapt.main(adapt.Config(generator, images, str(tmp_path / "full"), device="cpu"))
