"""Folders, archives and neighbours: what is read is what was meant, and all that is left out is counted and named."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import datasets
import pytest
from PIL import Image

import mtl
from mtl.data import ClassTasks, divide_families, load_or_make_split, open_families
from mtl.data.families.split import FamilyRequest


def draw(root: Path, files: dict[str, int]) -> Path:
    """Pictures that are the same where their numbers are."""
    for name, number in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(root / name)
    return root


def trees(*names: str, each: int = 3, start: int = 0) -> dict[str, int]:
    return {f"{name}/{i}.png": start + 100 * c + i for c, name in enumerate(names) for i in range(each)}


def numbers(images: mtl.data.ImageCollection, label: str) -> list[int]:
    pixels = [image.getpixel((0, 0)) for image in images.of_class(label)]
    return [p[0] + 256 * p[1] for p in pixels]


def test_a_table_never_reads_from_a_neighbouring_folder(tmp_path):
    draw(tmp_path / "test", {"1.png": 1, "2.png": 2})
    draw(tmp_path / "train", {"1.png": 11, "2.png": 12})
    (tmp_path / "train.csv").write_text("file,label\n1.png,a\n2.png,b\n")
    for opened in (mtl.open_images, open_families):
        with pytest.raises(ValueError, match=r"train.csv: none of its images, such as '1.png', is in .*") as caught:
            opened(tmp_path / "train.csv")
        assert "pass the folder that they are relative to with image_folder= (--image-folder)" in str(caught.value)
        assert str(tmp_path / "test") in str(caught.value), "what there is to choose from is said"
    images = mtl.open_images(tmp_path / "train.csv", image_folder=tmp_path / "train")
    assert (numbers(images, "a"), numbers(images, "b")) == ([11], [12])
    [family] = open_families(tmp_path / "train.csv", image_folder=tmp_path / "train")
    assert [Path(family.data_set.examples.reader.name(i)).parent.name for i in (0, 1)] == ["train", "train"]


def test_sites_are_not_taken_for_the_classes(tmp_path):
    for site, start in (("east", 0), ("west", 1000)):
        draw(tmp_path / site, trees("ash", "elm", start=start))
    message = (
        r"such as 'east' with 'ash'; pass class_level=1 \(--class-level 1\) if 'east' is a class, or class_level=2"
    )
    for opened in (mtl.open_images, open_families):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path)
    assert mtl.open_images(tmp_path, class_level=1).class_names == ("east", "west")
    images = mtl.open_images(tmp_path, class_level=2)
    assert sorted(numbers(images, "elm")) == [100, 101, 102, 1100, 1101, 1102]
    assert list(open_families(tmp_path, class_level=2)[0].items) == ["ash", "elm"]
    shutil.make_archive(str(tmp_path / "sites"), "zip", tmp_path)
    with pytest.raises(ValueError, match=message):
        mtl.open_images(tmp_path / "sites.zip")
    with pytest.raises(ValueError, match="class_level=3: expected 1"):
        mtl.open_images(tmp_path, class_level=3)
    draw(tmp_path, {"east/9.png": 9})  # now the outer folders hold pictures themselves
    assert mtl.open_images(tmp_path).class_names == ("east", "west")


def test_an_archive_is_like_its_folder(tmp_path):
    for part, names in (("train", ("ash", "elm")), ("test", ("fir", "yew"))):
        draw(tmp_path / "forest" / part, trees(*names, start=1000 * (part == "test")))
    shutil.make_archive(str(tmp_path / "forest"), "zip", tmp_path, "forest")
    folder, archive = mtl.open_images(tmp_path / "forest"), mtl.open_images(tmp_path / "forest.zip")
    assert folder.parts == archive.parts == {"train": ("ash", "elm"), "test": ("fir", "yew")}
    for name in folder.class_names:
        assert sorted(numbers(folder, name)) == sorted(numbers(archive, name))
    request = FamilyRequest(split="class", ways=2, min_per_class=2, fractions=(0.5, 0, 0.5))
    divided = divide_families(open_families(tmp_path / "forest.zip"), request=request)
    assert set(divided.parts["test"]["forest.class"].items) == {"fir", "yew"}


def test_what_is_left_out_of_folders_is_counted_and_named(tmp_path):
    draw(tmp_path, trees("ash", "elm") | {"9.png": 9})
    for name in ("ash/a.heic", "ash/b.HEIC", "elm/notes.txt", "train.csv", "ash/.hidden.png", "README.md"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "yew").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = mtl.open_images(tmp_path)
    assert len(images) == 6
    assert images.notes == (
        f"{tmp_path}: 3 files of other kinds are left out: 2 .heic, 1 .txt, such as ash/a.heic",
        f"{tmp_path}: 1 images outside of class folders are left out, such as 9.png",
        f"{tmp_path}: train.csv beside the class folders, not read",
        f"{tmp_path}: 1 class folders without images are left out: 'yew'",
    )
    (tmp_path / "ash" / "bad.png").write_bytes(b"?")
    with pytest.warns(UserWarning, match="1 of 7 images"):
        images = mtl.open_images(tmp_path)
    assert "1 of 7 images" in images.notes[-1]


def test_an_image_that_is_there_twice_counts_once(tmp_path):
    draw(tmp_path, trees("ash", "elm", each=4) | {"ash/again.png": 2, "ash/and again.png": 2, "elm/also.png": 101})
    images = mtl.open_images(tmp_path)
    assert sorted(numbers(images, "ash")) == [0, 1, 2, 3]
    assert "3 images are the same as another one and are left out" in images.notes[-1]
    assert "ash/and again.png (as " in images.notes[-1]
    source = ClassTasks(images, images.class_names, preprocess=lambda x: x, ways=2, shots=2, queries=2)
    for i in range(20):
        _, support, query = source.read(i)
        assert not {x.getpixel((0, 0)) for x in support} & {x.getpixel((0, 0)) for x in query}
    assert len(mtl.open_images(tmp_path, verify="off")) == 11


def test_an_image_of_two_classes_is_in_none(tmp_path):
    draw(tmp_path, trees("ash", "elm") | {"elm/the same.png": 1})
    with pytest.warns(UserWarning, match=r"2 of 7 images .*ash/1.png \(the same image is in 'ash' and 'elm'\)"):
        images = mtl.open_images(tmp_path)
    assert (numbers(images, "ash"), numbers(images, "elm")) == ([0, 2], [100, 101, 102])
    with pytest.raises(ValueError, match="2 of 7 images"):
        mtl.open_images(tmp_path, on_unreadable="raise")


def test_without_duplicates_positions_stay_where_they_were(tmp_path):
    images = mtl.open_images(draw(tmp_path, trees("ash", "a b", "a")))
    assert images.items == {"a": (0, 1, 2), "a b": (3, 4, 5), "ash": (6, 7, 8)}
    assert images.notes == ()
    shutil.make_archive(str(tmp_path), "zip", tmp_path)
    zipped = mtl.open_images(tmp_path.with_suffix(".zip"))  # by path: "a b/0.png" is before "a/0.png"
    assert zipped.items == {"a": (3, 4, 5), "a b": (0, 1, 2), "ash": (6, 7, 8)}


def test_duplicates_of_a_data_set_share_their_labels(tmp_path):
    root = tmp_path / "toys"
    draw(root, trees("ash", "elm", each=4) | {"ash/x.png": 1, "elm/y.png": 2})
    rows = ["file,colour"] + [f"{name},{'red' if name == 'ash/x.png' else ''}" for name in trees("ash", "elm", each=4)]
    (root / "attributes.csv").write_text("\n".join([*rows, "ash/x.png,red", "elm/y.png,blue"]))
    kind, colour = open_families(root, ["class", "colour"])
    place = {key: i for i, key in enumerate(kind.data_set.keys)}
    assert (kind.labels[place["ash/1.png"]], kind.labels[place["ash/x.png"]]) == ("ash", None)
    assert kind.labels[place["ash/2.png"]] is None, "it is in two classes"
    assert (colour.labels[place["ash/1.png"]], colour.labels[place["ash/2.png"]]) == ("red", "blue")
    report = divide_families([kind, colour], request=FamilyRequest(ways=2, min_per_class=1, split="example")).report
    assert "1 because the same image disagrees, such as" in report[0]
    assert "2 images are the same as another one" in report[0]


def test_texts_that_are_there_twice_are_counted(tmp_path):
    rows = [{"text": f"{c} {i}", "label": c} for c in "ab" for i in range(3)]
    rows += [{"text": " a 0", "label": "a"}, {"text": "b 1", "label": "b"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = mtl.open_texts(tmp_path / "t.jsonl")
    assert texts.notes == ("2 texts are given again under the same label, and count once",)
    families = open_families(tmp_path / "t.jsonl", kind="texts")
    assert families[0].data_set.notes == ("2 texts that are given again",)


@pytest.mark.parametrize("opened", [mtl.open_images, mtl.open_texts])
def test_one_rare_class_is_left_out(tmp_path, opened):
    if opened is mtl.open_images:
        source = draw(tmp_path, trees("ash", "elm") | {"yew/0.png": 900})
    else:
        source = tmp_path / "t.csv"
        source.write_text("text,label\n" + "".join(f"{n},{n.split('/')[0]}\n" for n in (*trees("ash", "elm"), "yew/0")))
    assert opened(source).class_names == ("ash", "elm", "yew")
    found = opened(source, min_per_class=2)
    noun = found.noun.removesuffix("s")
    assert found.class_names == ("ash", "elm")
    assert found.notes == (f"1 classes of fewer than 2 {noun}s are left out: 'yew' (1)",)
    with pytest.raises(ValueError, match=r"has 0 classes, \[\] \(3 classes of fewer than 4 .*at least two"):
        opened(source, min_per_class=4)


def test_a_part_loses_the_classes_that_are_left_out(tmp_path):
    for part, names in (("train", ("ash", "elm")), ("test", ("fir", "yew"))):
        draw(tmp_path / part, trees(*names, start=1000 * (part == "test")))
    shutil.rmtree(tmp_path / "test" / "yew")
    draw(tmp_path / "test", {"yew/0.png": 5000})
    assert mtl.open_images(tmp_path, min_per_class=2).parts == {"train": ("ash", "elm"), "test": ("fir",)}


def test_few_classes_are_told_how_many_are_needed_before_a_split_is_stored(tmp_path):
    path, names = tmp_path / "split.json", [f"c{i}" for i in range(10)]
    with pytest.raises(
        ValueError, match=r"'val' part has 2 classes and ways=5 .*23 in all are enough.*--split example"
    ):
        load_or_make_split(path, names, ways=5)
    assert not path.exists()
    assert load_or_make_split(path, [f"c{i}" for i in range(23)], ways=5)


def test_splits_with_unequal_columns(tmp_path):
    rows = {"text": ["a", "b", "c", "d"], "label": list("xxyy")}
    more = datasets.Dataset.from_dict({"text": ["e", "f"], "note": [1, 2]})
    data = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows), unlabelled=more)
    with pytest.raises(ValueError, match=r"the data set unlabelled has no columns that may be the label .*split="):
        mtl.open_texts(data)
    assert len(mtl.open_texts(data, split="train")) == 4
    other = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(rows), test=datasets.Dataset.from_dict(rows).rename_column("label", "target")
    )
    with pytest.raises(ValueError, match=r"differ in their columns, \['label', 'target'\]"):
        mtl.open_texts(other)
    wider = datasets.DatasetDict(train=data["train"], test=data["train"].add_column("note", [1, 2, 3, 4]))
    with pytest.warns(UserWarning, match="pooled"):
        assert len(mtl.open_texts(wider)) == 4


def test_options_that_do_not_apply_are_refused(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    with pytest.raises(ValueError, match="encoding='latin-1' does not apply"):
        mtl.open_texts(data, encoding="latin-1")
    with pytest.raises(ValueError, match="class_level=2 does not apply"):
        mtl.open_images(data, class_level=2)
    with pytest.raises(ValueError, match="encoding='utf-16' does not apply"):
        mtl.open_images(draw(tmp_path, trees("ash", "elm")), encoding="utf-16")
