"""People's own images: every format, every refusal, and episodes that are what they say."""

from __future__ import annotations

import csv
import io
import pickle
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mtl.data.own.class_labels import class_labels
from mtl.data.own.class_tasks import ClassTasks
from mtl.data.own.images import open_images
from mtl.data.own.splits import ClassSplit, load_or_make_split, split_classes

CLASSES = ["ash", "birch", "cedar", "elm"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """``datasets`` copies tables into a cache; keep it out of the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(number: int) -> Image.Image:
    """A picture whose every pixel tells which one it is."""
    return Image.new("RGB", (6, 4), (number % 256, number // 256, 7))


def number_of(pixels: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`picture`, for pixels ``(..., 3, H, W)``."""
    return pixels[..., 0, 0, 0] + 256 * pixels[..., 1, 0, 0]


def preprocess(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() for i in images])


def write_folder(root: Path, classes=CLASSES, each: int = 6, start: int = 0) -> Path:
    """Class ``c`` holds the pictures ``100 * c`` and on."""
    for c, name in enumerate(classes, start):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(100 * c + i).save(root / name / f"{i}.png")
    return root


def write_csv(file: Path, rows, header=("filename", "label"), delimiter=",") -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return file


def table(classes=CLASSES, each: int = 6, start: int = 0, labels=None) -> datasets.Dataset:
    pictures = [picture(100 * c + i) for c in range(start, start + len(classes)) for i in range(each)]
    labels = labels or [c for c in range(len(classes)) for _ in range(each)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


# formats


def as_folder(root):
    return write_folder(root / "folder")


def as_csv(root):
    write_folder(root / "data" / "images")
    rows = [(f"images/{c}/{i}.png", c) for c in CLASSES for i in range(6)]
    return write_csv(root / "data" / "labels.csv", rows)


def as_csv_folder(root):
    return as_csv(root).parent


def as_semicolon_csv(root):
    write_folder(root / "images")
    return write_csv(root / "t.csv", [(f"images\\{c}\\{i}.png", c) for c in CLASSES for i in range(6)], delimiter=";")


def as_parquet(root):
    table().to_parquet(root / "t.parquet")
    return root / "t.parquet"


def as_parquet_folder(root):
    (root / "data").mkdir()
    table().to_parquet(root / "data" / "train-00000-of-00001.parquet")
    return root / "data"


def as_disk(root):
    table().save_to_disk(root / "disk")
    return root / "disk"


def as_disk_dict(root):
    datasets.DatasetDict(train=table(CLASSES)).save_to_disk(root / "disk")
    return root / "disk"


def as_object(root):
    return table()


FORMATS = [
    as_folder,
    as_csv,
    as_csv_folder,
    as_semicolon_csv,
    as_parquet,
    as_parquet_folder,
    as_disk,
    as_disk_dict,
    as_object,
]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_collection(form, tmp_path):
    collection = open_images(form(tmp_path))
    assert collection.class_names == tuple(CLASSES)
    assert len(collection) == 24
    for c, name in enumerate(CLASSES):
        found = preprocess([collection.image(i) for i in collection.items[name]])
        assert number_of(found).tolist() == [100 * c + i for i in range(6)]
    assert collection.parts == {}
    assert collection.skipped == ()


def test_hub_id_goes_to_datasets(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a: asked.append(a) or datasets.DatasetDict(train=table()))
    assert len(open_images("owner/trees", config="small")) == 24
    assert asked == [("owner/trees", "small")]


def test_failing_hub_id_says_that_there_is_no_folder_either(monkeypatch):
    def refuse(*_):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"'owner/trees' is no file or folder here.*ConnectionError: offline"):
        open_images("owner/trees")


def test_bytes_without_image_feature(tmp_path):
    blobs = [p.read_bytes() for p in sorted(write_folder(tmp_path / "f").rglob("*.png"))]
    plain = datasets.Dataset.from_dict({"img": blobs, "category": [c for c in CLASSES for _ in range(6)]})
    plain.to_parquet(tmp_path / "t.parquet")
    assert open_images(tmp_path / "t.parquet").class_names == tuple(CLASSES)


def test_table_of_paths_is_relative_to_its_folder(tmp_path):
    write_folder(tmp_path)
    paths = datasets.Dataset.from_dict({"path": ["ash/0.png", "elm/0.png"], "label": [1, 0]})
    paths.to_parquet(tmp_path / "t.parquet")
    collection = open_images(tmp_path / "t.parquet")
    assert collection.class_names == ("0", "1")
    assert number_of(preprocess([collection.image(collection.items["0"][0])])).tolist() == [300]


def test_named_columns_and_split(tmp_path):
    data = table().rename_columns({"image": "scan", "label": "species"}).add_column("label", ["x"] * 24)
    data = datasets.DatasetDict(train=data, extra=data)
    collection = open_images(data, image_column="scan", label_column="species", split="extra")
    assert len(collection) == 24
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['train', 'extra'\]"):
        open_images(data, split="dev")


def test_collections_go_to_loader_workers(tmp_path):
    for source in (as_folder(tmp_path), as_object(tmp_path)):
        copy = pickle.loads(pickle.dumps(open_images(source)))
        assert copy.image(0).getpixel((0, 0)) == (0, 0, 7)


# parts


def test_train_val_test_folders_are_parts(tmp_path):
    for i, (part, classes) in enumerate(
        {"train": CLASSES[:2], "Validation": CLASSES[2:3], "test": CLASSES[3:]}.items()
    ):
        write_folder(tmp_path / part, classes, start=10 * i)
    collection = open_images(tmp_path)
    assert collection.parts == {"train": ("ash", "birch"), "val": ("cedar",), "test": ("elm",)}
    split = split_classes(collection.class_names, given=collection.parts, seed=3)
    assert split.parts == collection.parts
    assert split.drawn == ()


def test_csv_parts(tmp_path):
    write_folder(tmp_path / "images")
    for part, classes in {"train": CLASSES[:3], "test": CLASSES[3:]}.items():
        write_csv(tmp_path / f"{part}.csv", [(f"{c}/{i}.png", c) for c in classes for i in range(6)])
    assert open_images(tmp_path, image_folder=tmp_path / "images").parts == {
        "train": ("ash", "birch", "cedar"),
        "test": ("elm",),
    }


def test_hub_parts():
    data = datasets.DatasetDict(train=table(CLASSES[:2]), validation=table(CLASSES[2:], start=2))
    data["validation"] = data["validation"].cast_column("label", datasets.ClassLabel(names=CLASSES[2:]))
    assert open_images(data).parts == {"train": ("ash", "birch"), "val": ("cedar", "elm")}


def test_parts_that_share_classes_are_pooled_with_a_warning(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", CLASSES[:2], start=10)
    with pytest.warns(UserWarning, match=r"2 classes are in more than one of .*'ash', 'birch'.*pooled"):
        collection = open_images(tmp_path)
    assert collection.parts == {}
    assert [len(collection.items[c]) for c in CLASSES] == [12, 12, 6, 6]


# refusals


def empty(root):
    return root


def flat(root):
    picture(0).save(root / "0.png")
    return root


def one_class(root):
    return write_folder(root, ["ash"])


def wrapped(root):
    write_folder(root / "images")
    return root


def flat_parts(root):
    return write_folder(root, ["train", "test"])


def archive(root):
    (root / "trees.zip").write_bytes(b"PK")
    return root / "trees.zip"


def two_tables(root):
    write_csv(root / "a.csv", [])
    return write_csv(root / "b.csv", []).parent


def csv_blank(root):
    write_folder(root)
    return write_csv(root / "t.csv", [("ash/0.png", "ash"), ("elm/0.png", ""), ("elm/1.png", "elm")])


def csv_short_row(root):
    write_folder(root)
    return write_csv(root / "t.csv", [("ash/0.png", "ash"), ("elm/0.png",)])


def csv_float(root):
    write_folder(root)
    return write_csv(root / "t.csv", [("ash/0.png", "0.0"), ("elm/0.png", "1.0")])


def csv_two_labels(root):
    write_folder(root)
    return write_csv(root / "t.csv", [("ash/0.png", "ash"), ("ash/0.png", "elm")])


def csv_elsewhere(root):
    return write_csv(root / "t.csv", [("ash/0.png", "ash")])


def csv_columns(root):
    return write_csv(root / "t.csv", [("0.png", "ash")], header=("scan", "label"))


def unlabelled_split(root):
    return table(labels=[-1] * 24)


def missing_in_table(root):
    return table(labels=[None] + [1] * 23)


def float_in_table(root):
    return table().remove_columns("label").add_column("label", [0.5] * 24)


def listed_labels(root):
    return table().remove_columns("label").add_column("label", [[0, 1]] * 24)


def two_label_columns(root):
    return table().add_column("coarse", [0] * 24).cast_column("coarse", datasets.ClassLabel(names=["tree"]))


REFUSALS = [
    (empty, "is empty; expected one sub-folder"),
    (flat, "has no sub-folders; expected one sub-folder of images per class, or a csv"),
    (one_class, "one sub-folder, 'ash'; expected one per class, two at least"),
    (wrapped, r"one sub-folder, 'images'.*or pass .*images if the classes are in there"),
    (flat_parts, r"\['test', 'train'\] without class folders in them"),
    (archive, r"trees.zip is no readable zip archive .*unpack"),
    (two_tables, r"several tables, \['a.csv', 'b.csv'\]; pass the path"),
    (csv_blank, r"t.csv: 1 of 3 labels are missing \(rows \[1\]"),
    (
        csv_short_row,
        r"t.csv, line 3: 1 cells, expected 2 \(filename, label\): 'elm/0.png'; put a text with a comma",
    ),
    (csv_float, r"labels are fractions such as 0.0; expected class names or integers"),
    (csv_two_labels, r"ash/0.png is listed under 'ash' and 'elm'"),
    (csv_elsewhere, r"t.csv: none of its images, such as 'ash/0.png', is in .*image_folder="),
    (csv_columns, r"no columns that may be the image among \['scan', 'label'\]; name one with image_column="),
    (unlabelled_split, r"24 of 24 labels are missing .*leave out the unlabelled rows or split"),
    (missing_in_table, r"1 of 24 labels are missing"),
    (float_in_table, r"labels are fractions such as 0.5"),
    (listed_labels, r"labels are lists; expected one class per example"),
    (two_label_columns, r"2 columns that may be the label .*label_column="),
]


@pytest.mark.parametrize(("source", "message"), REFUSALS, ids=[s.__name__ for s, _ in REFUSALS])
def test_refusals(source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_images(source(tmp_path))


def test_options_that_cannot_apply_are_refused(tmp_path):
    with pytest.raises(ValueError, match="label_column='species' does not apply"):
        open_images(as_folder(tmp_path), label_column="species")
    with pytest.raises(ValueError, match="split='train' does not apply"):
        open_images(as_csv(tmp_path), split="train")


@pytest.mark.parametrize("option", ["mode", "verify", "on_unreadable"])
def test_unknown_choices_are_refused(tmp_path, option):
    with pytest.raises(ValueError, match=f"{option}='maybe': expected one of"):
        open_images(as_folder(tmp_path), **{option: "maybe"})


def test_missing_folder_is_not_taken_for_a_class(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: (_ for _ in ()).throw(FileNotFoundError("no such id")))
    with pytest.raises(ValueError, match="is no file or folder here"):
        open_images(tmp_path / "nowhere")


def test_labels_that_look_like_versions_or_breads_are_classes():
    assert class_labels(["v1.5", "2.0"], "t") == ["v1.5", "2.0"]
    assert class_labels(["nan", "focaccia"], "t") == ["nan", "focaccia"]
    with pytest.raises(ValueError, match="1 of 2 labels are missing"):
        class_labels([float("nan"), 1.0], "t")


# pixels


@pytest.fixture
def corrupted(tmp_path):
    root = write_folder(tmp_path / "f")
    (root / "ash" / "2.png").write_bytes(b"not an image")
    truncate(root / "elm" / "5.png")
    return root


def test_unreadable_images_are_counted_named_and_skipped(corrupted):
    with pytest.warns(UserWarning, match=r"2 of 24 images of .* cannot be used: .*ash/2.png .*elm/5.png .*skipped"):
        collection = open_images(corrupted)
    assert len(collection) == 22
    assert [len(collection.items[c]) for c in CLASSES] == [5, 6, 6, 5]
    assert len(collection.skipped) == 2


def test_unreadable_images_are_refused_on_request(corrupted):
    with pytest.raises(ValueError, match=r"2 of 24 images .*ash/2.png.*on_unreadable=\"skip\""):
        open_images(corrupted, on_unreadable="raise")


def test_a_class_without_readable_images_is_left_out_and_named(tmp_path):
    root = write_folder(tmp_path, each=1)
    (root / "elm" / "0.png").write_bytes(b"")
    (root / "yew").mkdir()
    with pytest.warns(UserWarning, match="1 of 4"):
        collection = open_images(root)
    assert collection.class_names == ("ash", "birch", "cedar")
    assert "1 classes of fewer than 1 images are left out: 'elm' (0)" in collection.notes
    assert f"{root}: 1 class folders without images are left out: 'yew'" in collection.notes


def test_truncated_jpeg_passes_the_header_but_not_the_decoder(tmp_path):
    root = write_folder(tmp_path)
    Image.effect_noise((64, 64), 50).save(root / "ash" / "bad.jpg")
    truncate(root / "ash" / "bad.jpg")
    collection = open_images(root)
    with pytest.raises(ValueError, match=r'bad.jpg cannot be decoded .*verify="decode"'):
        [collection.image(i) for i in collection.items["ash"]]
    with pytest.warns(UserWarning, match=r"1 of 25 images"):
        assert len(open_images(root, verify="decode")) == 24


def test_unverified_images_fail_by_name_when_decoded(corrupted):
    collection = open_images(corrupted, verify="off")
    with pytest.raises(ValueError, match=r"ash/2.png cannot be decoded"):
        collection.image(collection.items["ash"][2])


def test_corrupt_rows_of_a_table(tmp_path):
    blobs = [p.read_bytes() for p in sorted(write_folder(tmp_path / "f").rglob("*.png"))]
    data = datasets.Dataset.from_dict(
        {"image": [b"bad", None, *blobs[2:]], "label": [c for c in CLASSES for _ in range(6)]}
    )
    with pytest.warns(
        UserWarning, match=r"2 of 24 .*row 0 of column 'image'.*row 1 of column 'image' \(the row has no"
    ):
        assert len(open_images(data)) == 22


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("L", (4, 4), 9), (9, 9, 9)),
        (Image.new("RGBA", (4, 4), (9, 9, 9, 0)), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 9 << 8, np.uint16)), (9, 9, 9)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
    ],
    ids=["grey", "transparent", "16-bit", "binary"],
)
def test_mixed_modes_become_what_is_asked_for(tmp_path, image, pixel):
    root = write_folder(tmp_path)
    image.save(root / "ash" / "z.png")
    collection = open_images(root)
    assert collection.image(collection.items["ash"][-1]).getpixel((0, 0)) == pixel
    grey = open_images(root, mode="L")
    assert {grey.image(i).mode for i in grey.items["ash"]} == {"L"}


def test_pictures_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    root = write_folder(tmp_path)
    picture(0).save(root / "ash" / "z.jpg", exif=exif)
    collection = open_images(root)
    assert collection.image(collection.items["ash"][-1]).size == (4, 6)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_for_many_images_only(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    open_images(write_folder(tmp_path / "few"))
    assert "checking images" not in terminal.getvalue()
    open_images(write_folder(tmp_path / "many", each=130))
    assert "520/520" in terminal.getvalue()


def test_hidden_files_are_not_images(tmp_path):
    root = write_folder(tmp_path)
    (root / "ash" / "._0.png").write_bytes(b"resource fork")
    (root / ".git").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_images(root)) == 24


# splits

TEN = [f"class {i}" for i in range(10)]


def test_split_is_disjoint_complete_and_seeded():
    split = split_classes(TEN, seed=1)
    assert [len(c) for c in split.parts.values()] == [6, 2, 2]
    assert sorted(sum(split.parts.values(), ())) == sorted(TEN)
    assert split == split_classes(TEN[::-1], seed=1)
    assert split.parts != split_classes(TEN, seed=2).parts


@pytest.mark.parametrize("count", range(3, 30))
def test_every_part_gets_a_class(count):
    split = split_classes([str(i) for i in range(count)], fractions=(0.98, 0.01, 0.01))
    assert all(split.parts.values())
    assert sum(map(len, split.parts.values())) == count


def test_missing_parts_are_drawn_from_train():
    split = split_classes(TEN, given={"train": TEN[:8], "test": TEN[8:]})
    assert split.test == tuple(TEN[8:])
    assert len(split.val) == 2
    assert set(split.train) | set(split.val) == set(TEN[:8])
    assert split.drawn == ("train", "val")


def test_split_refusals():
    with pytest.raises(ValueError, match="2 classes cannot be divided into train and val and test"):
        split_classes(["a", "b"])
    with pytest.raises(ValueError, match="sum to 1"):
        split_classes(TEN, fractions=(0.6, 0.2, 0.1))
    with pytest.raises(ValueError, match="class names must be distinct"):
        split_classes(["a", "a", "b", "c"])
    with pytest.raises(ValueError, match="more than one part of a split: 'b'"):
        ClassSplit(("a", "b"), ("b",), ())
    with pytest.raises(ValueError, match=r"'val' part has 2 classes and ways=5 .*--ways 2"):
        split_classes(TEN).check_ways(5)
    split_classes(TEN).check_ways(2)


def test_split_is_made_once(tmp_path):
    path = tmp_path / "results" / "split.json"
    first = load_or_make_split(path, TEN, seed=4)
    assert load_or_make_split(path, TEN, seed=4) == first == ClassSplit.load(path)
    with pytest.raises(ValueError, match="drawn with seed=4"):
        load_or_make_split(path, TEN, seed=5)
    with pytest.warns(UserWarning, match="1 classes of .* are in no part of the split: 'new'"):
        assert load_or_make_split(path, [*TEN, "new"], seed=4) == first


def test_saved_split_with_a_class_that_is_gone(tmp_path):
    path = tmp_path / "split.json"
    load_or_make_split(path, TEN)
    with pytest.raises(ValueError, match=r"names 1 classes that the data .*lacks: 'class 3'; bring them back"):
        load_or_make_split(path, [c for c in TEN if c != "class 3"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"train": 3}'])
def test_saved_split_that_is_none(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match="not a saved class split"):
        ClassSplit.load(tmp_path / "split.json")


# episodes


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return open_images(write_folder(tmp_path_factory.mktemp("episodes")))


def tasks(collection, classes=CLASSES, **options) -> ClassTasks:
    return ClassTasks(collection, classes, **{"preprocess": preprocess, "ways": 3, "shots": 2, "queries": 3, **options})


def test_episode_shapes_and_labels(collection):
    episode = tasks(collection).sample(0)
    assert episode.support.inputs.shape == (1, 6, 3, 4, 6)
    assert episode.query.inputs.shape == (1, 9, 3, 4, 6)
    assert episode.support.labels.tolist() == [[0, 0, 1, 1, 2, 2]]
    assert episode.query.labels.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    assert (episode.ways, episode.families, episode.tasks) == (3, ("images",), 1)


def test_support_and_query_share_classes_but_no_image(collection):
    sampler = tasks(collection)
    for index in range(20):
        episode = sampler.sample(index)
        support, query = number_of(episode.support.inputs.tensor)[0], number_of(episode.query.inputs.tensor)[0]
        numbers = torch.cat([support, query])
        assert len(numbers.unique()) == 15
        by_label = [
            set((n[s.labels[0] == w] // 100).tolist())
            for s, n in ((episode.support, support), (episode.query, query))
            for w in range(3)
        ]
        assert by_label[:3] == by_label[3:]
        assert all(len(classes) == 1 for classes in by_label)


def test_episode_depends_on_seed_and_index_alone(collection):
    forward = [number_of(tasks(collection).sample(i).query.inputs.tensor) for i in range(5)]
    other = tasks(collection, CLASSES[::-1], cache_bytes=0)
    backward = [number_of(other.sample(i).query.inputs.tensor) for i in reversed(range(5))][::-1]
    assert all(map(torch.equal, forward, backward))
    assert not torch.equal(forward[0], forward[1])
    assert not torch.equal(forward[0], number_of(tasks(collection, seed=1).sample(0).query.inputs.tensor))


def test_episodes_keep_to_their_classes(collection):
    sampler = tasks(collection, ["birch", "elm"], ways=2)
    seen = {int(n) // 100 for i in range(10) for n in number_of(sampler.sample(i).support.inputs.tensor)[0]}
    assert seen == {1, 3}


def test_ranges_of_ways_and_shots(collection):
    sampler = tasks(collection, ways=(2, 4), shots=(1, 3))
    drawn = {(e.ways, e.support.labels.shape[1] // e.ways) for e in map(sampler.sample, range(60))}
    assert drawn == {(w, s) for w in (2, 3, 4) for s in (1, 2, 3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["ash", "oak"]}, r"classes \['oak'\] are not in"),
        ({"classes": ["ash", "ash"]}, "repeats a class"),
        ({"ways": 5}, r"ways=5 takes 5 classes .*only 4 are given; use --ways 4"),
        ({"ways": (2, 9)}, r"ways=9 .*use --ways 4"),
        ({"classes": ["ash"]}, "add classes: an episode needs two"),
        (
            {"shots": 5},
            r"take 8 images of each class, and 4 of 4 .*'ash' has 6, .*'elm' has 6; use --shots 3 --queries 3",
        ),
        ({"shots": 2, "queries": 15}, r"use --shots 2 --queries 4"),
        ({"ways": 1}, "ways=1: expected an integer of at least 2"),
        ({"shots": (3, 1)}, r"shots=\(3, 1\): expected .* low <= high"),
        ({"queries": 0}, "queries=0: expected an integer of at least 1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_task_refusals(collection, options, message):
    with pytest.raises(ValueError, match=message):
        tasks(collection, **options)


def test_negative_index_is_refused(collection):
    with pytest.raises(ValueError, match="index=-1"):
        tasks(collection).sample(-1)


@pytest.mark.parametrize("wrong", [lambda i: None, lambda i: torch.zeros(len(i), 3), lambda i: torch.zeros(1, 3, 4, 4)])
def test_preprocess_is_checked(collection, wrong):
    with pytest.raises(ValueError, match=r"preprocess turned 6 images into .*expected floats \(n, channels"):
        tasks(collection, preprocess=wrong).sample(0)


def test_cache_spares_preprocessing_within_its_bytes(collection):
    done = []

    def counted(images):
        done.append(len(images))
        return preprocess(images)

    sampler = tasks(collection, preprocess=counted)
    first, again = sampler.sample(0), sampler.sample(0)
    assert done == [6, 9]
    assert torch.equal(first.query.inputs.tensor, again.query.inputs.tensor)

    image_bytes = 3 * 4 * 6 * 4
    small = tasks(collection, cache_bytes=4 * image_bytes)
    for index in range(5):
        small.sample(index)
    assert small.inputs.size == 4 * image_bytes
    assert pickle.loads(pickle.dumps(small)).inputs.size == 0
