"""Several data sets and label columns: balanced, divided without leaks, grouped, and counted."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import pickle
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mtl
from mtl.data import FamilyRequest, FamilyTasks, InputCache, divide_families, open_families

TYPES, COLOURS, PEOPLE = 12, 10, 6
REQUEST = FamilyRequest(ways=2, min_per_class=3)


def write_clothes(root: Path, each: int = 30) -> Path:
    """Types in folders; colours and people in a table, the last photograph of each type without a colour."""
    rows = []
    for t in range(TYPES):
        (root / f"type{t:02}").mkdir(parents=True)
        for i in range(each):
            file = f"type{t:02}/track{i // 3}_{i}.png"
            colour = (t * 7 + i) % COLOURS
            Image.new("RGB", (4, 4), (t * 20, colour * 20, i * 8)).save(root / file)
            rows.append((file, f"colour{colour}" if i < each - 1 else ("NA", "")[t % 2], f"person{i % PEOPLE}", t / 3))
    write_table(root / "attributes.csv", ("file", "colour", "person", "weight"), rows)
    return root


def write_table(file: Path, header, rows) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


@pytest.fixture(scope="module")
def clothes(tmp_path_factory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data") / "clothes")


@pytest.fixture(scope="module")
def families(clothes: Path) -> list[mtl.data.Family]:
    return open_families(clothes, ["class", "colour", "person"])


def preprocess(images) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() for i in images])


def tasks(divided, part="train", **options) -> FamilyTasks:
    return FamilyTasks(divided, part, **{"preprocess": preprocess, "ways": 2, "shots": 1, "queries": 2} | options)


def positions(divided, part: str) -> set[int]:
    return {i for c in divided.parts[part].values() for places in c.items.values() for i in places}


def test_columns_are_families_and_blanks_are_left_out(families):
    assert [f.name for f in families] == ["clothes.class", "clothes.colour", "clothes.person"]
    assert [len(f.items) for f in families] == [TYPES, COLOURS, PEOPLE]
    report = divide_families(families, request=REQUEST).report
    assert report[1].startswith(f"clothes.colour: {TYPES * 29} images, {COLOURS} classes")
    assert f"left out: {TYPES} without a label" in report[1]
    assert "left out" not in report[0]


REQUESTS = {
    "auto": REQUEST,
    "class": replace(REQUEST, split="class"),
    "example": replace(REQUEST, split="example"),
    "family": replace(REQUEST, split="family"),
    "held": replace(REQUEST, hold_out=("*.person",)),
    "held and validation": replace(REQUEST, hold_out=("*.person", "*.colour"), validation=("*.class",)),
    "validation": replace(REQUEST, validation=("clothes.colour",)),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("seed", range(3))
def test_no_photograph_is_in_two_parts_under_any_columns(families, name, seed):
    divided = divide_families(families, request=replace(REQUESTS[name], seed=seed))
    held = {part: positions(divided, part) for part in ("train", "val", "test")}
    assert sum(map(len, held.values())) == len(set.union(*held.values())) > 0
    for family in families:
        rule, collections = divided.split.rules[family.name], {p: c.get(family.name) for p, c in divided.parts.items()}
        classes = [set(c.items) for c in collections.values() if c]
        if rule.by == "class":
            assert sum(map(len, classes)) == len(set.union(*classes))
        for c in filter(None, collections.values()):
            assert all(family.labels[i] == label for label, places in c.items.items() for i in places)


def test_the_split_fits_the_number_of_classes(families):
    divided = divide_families(families, request=REQUEST)
    assert {name: rule.by for name, rule in divided.split.rules.items()} == {
        "clothes.class": "class",
        "clothes.colour": "class",
        "clothes.person": "example",
    }
    people = [set(divided.parts[part]["clothes.person"].items) for part in ("train", "val", "test")]
    assert people[0] == people[1] == people[2] == {f"person{i}" for i in range(PEOPLE)}
    for family in families[:2]:  # a test class keeps all of its photographs
        test = divided.parts["test"][family.name].items
        assert all(len(places) == len(family.items[name]) for name, places in test.items())


def test_fine_classes_follow_the_coarse_ones_that_they_lie_in(tmp_path):
    texts = [
        {"text": f"{i} {j} {k}", "coarse": f"c{i}", "fine": f"f{i}.{j}"}
        for i in range(12)
        for j in range(3)
        for k in range(6)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, texts)))
    divided = divide_families(open_families(tmp_path / "a.jsonl", ["coarse", "fine"], kind="texts"), request=REQUEST)
    for part, found in divided.parts.items():
        coarse = {name[1:] for name in found["a.coarse"].items}
        assert {name[1:].split(".")[0] for name in found["a.fine"].items} == coarse, part
        assert len(found["a.fine"].items) == 3 * len(coarse)


def test_hold_outs_and_validation_families(families):
    divided = divide_families(families, request=replace(REQUEST, hold_out=("*.per*",), validation=("*.colour",)))
    assert {part: sorted(found) for part, found in divided.parts.items()} == {
        "train": ["clothes.class"],
        "val": ["clothes.class", "clothes.colour"],
        "test": ["clothes.class", "clothes.person"],
    }
    assert divided.unseen == ("clothes.colour", "clothes.person")


def test_a_held_out_data_set_is_for_the_test_as_a_whole(families, tmp_path):
    more = open_families({"more": write_clothes(tmp_path / "x", 6)})
    divided = divide_families([*families, *more], request=replace(REQUEST, hold_out=("more.*",)))
    assert len(divided.parts["test"]["more.class"]) == TYPES * 6


def test_families_are_balanced_and_episodes_depend_on_the_index_alone(families):
    source = tasks(divide_families(families, request=REQUEST), seed=3)
    drawn = [source.sample(i).families[0] for i in range(30)]
    assert Counter(drawn) == dict.fromkeys(source.names, 10)
    assert len({tasks_of_family.seed for tasks_of_family in source.sources.values()}) == 3
    assert all(set(drawn[i : i + 3]) == set(source.names) for i in range(0, 30, 3))
    assert len({tuple(drawn[i : i + 3]) for i in range(0, 30, 3)}) > 1
    again = tasks(
        divide_families(
            open_families(families[0].data_set.examples.source, ["class", "colour", "person"]), request=REQUEST
        ),
        seed=3,
    )
    for i in (5, 2, 11):
        a, b = source.sample(i), again.sample(i)
        assert a.families == b.families
        assert torch.equal(a.query.inputs.tensor, b.query.inputs.tensor)
    assert not torch.equal(
        tasks(divide_families(families, request=REQUEST), seed=4).sample(2).query.inputs.tensor,
        source.sample(2).query.inputs.tensor,
    )


@pytest.mark.parametrize("per_family", [1, 4, 5])
def test_evaluation_has_as_many_episodes_of_each_family_two_in_a_row(families, per_family):
    tested = tasks(divide_families(families, request=REQUEST), "test")
    source, names = mtl.data.EvaluationTasks(tested, per_family), tested.names
    drawn = [source.sample(i) for i in range(source.episodes)]
    rounds = [2] * (per_family // 2) + [1] * (per_family % 2)
    assert [e.families[0] for e in drawn] == [name for size in rounds for name in names for _ in range(size)]
    for name in names:  # every episode of a family once
        found = [e.query.inputs.tensor for e in drawn if e.families == (name,)]
        expected = [tested.sources[name].sample(i).query.inputs.tensor for i in range(per_family)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match=f"index={source.episodes}: expected one below {source.episodes}"):
        source.sample(source.episodes)


def test_a_photograph_is_read_once_for_all_families(families):
    read = []
    cache = InputCache(lambda images: (read.extend(images), preprocess(images))[1])
    source = tasks(divide_families(families, request=REQUEST), preprocess=cache)
    for i in range(300):
        source.sample(i)
    assert len(read) == len({i.tobytes() for i in read}) <= TYPES * 30


@pytest.mark.parametrize("spec", ["person", r"clothes:track\d+"])
def test_support_and_query_share_no_group(clothes, spec):
    families = open_families(clothes, ["class", "colour"], groups=[spec])
    source = tasks(divide_families(families, request=REQUEST), ways=(2, 3), shots=(1, 3))
    for i in range(60):
        tasks_of_family = source.sources[source.family(i)]
        draw, groups = tasks_of_family.draw(i), tasks_of_family.collection.groups
        sides = [{groups[p] for p in side} for side in (draw.support, draw.query)]
        assert not sides[0] & sides[1]
        assert len(set(draw.support) | set(draw.query)) == len(draw.support) + len(draw.query)


def test_a_group_is_in_one_part_where_no_column_is_divided_by_class(clothes):
    families = open_families(clothes, ["class", "colour"], groups=["person"])
    divided = divide_families(families, request=replace(REQUEST, split="example"))
    groups = families[0].data_set.groups
    held = [{groups[i] for i in positions(divided, part)} for part in ("train", "val", "test")]
    assert sum(map(len, held)) == len(set.union(*held))


def test_classes_with_too_few_groups_are_left_out(clothes):
    families = open_families(clothes, ["class", "person"], groups=["person"])
    source = tasks(divide_families(families, request=REQUEST))
    assert source.names == ("clothes.class",)
    assert source.left_out[0].startswith("clothes.person: 6 of 6 classes left out, for 1 + 2 examples they cannot keep")


def test_small_classes_and_families_are_left_out_and_counted(families):
    divided = divide_families(families, request=replace(REQUEST, ways=3, min_per_class=20))
    assert "clothes.class" in divided.parts["test"] or "test" in divided.report[0].split("left out")[1]
    assert "classes of fewer than 20" in " ".join(divided.report)
    for found in divided.parts.values():
        for c in found.values():
            assert min(map(len, c.items.values())) >= 20
            assert len(c.items) >= 3


def test_a_split_is_stored_and_found_again(families, tmp_path):
    path = tmp_path / "run" / "split.json"
    first = divide_families(families, path, REQUEST)
    again = divide_families(families, path, REQUEST)
    assert again.split == first.split
    assert {p: positions(again, p) for p in again.parts} == {p: positions(first, p) for p in first.parts}
    with pytest.raises(ValueError, match=r"drawn in another way \(seed=0 then and 1 now\)"):
        divide_families(families, path, replace(REQUEST, seed=1))
    with pytest.raises(ValueError, match=r"other families \(clothes.person\)"):
        divide_families(families[:2], path, REQUEST)
    stored = json.loads(path.read_text())
    stored["families"]["clothes.class"]["parts"]["train"].append("gone")
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"1 classes that clothes\.class lacks, such as 'gone'"):
        divide_families(families, path, REQUEST)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a saved split of families"):
        divide_families(families, path, REQUEST)


def test_photographs_that_are_added_move_no_other(clothes, families, tmp_path):
    path, more = tmp_path / "split.json", tmp_path / "clothes"
    first = divide_families(families, path, REQUEST)
    shutil.copytree(clothes, more)
    Image.new("RGB", (4, 4)).save(more / "type00" / "track0_000.png")
    later = open_families(more, ["class", "colour", "person"])
    second = divide_families(later, path, REQUEST)
    for part in first.parts:
        before = {families[0].data_set.keys[i] for i in positions(first, part)}
        assert before == {later[0].data_set.keys[i] for i in positions(second, part)} - {"type00/track0_000.png"}
    assert "1 images without a row in attributes.csv" in second.report[0]


@pytest.mark.parametrize("inside", ["", "photos"])
def test_a_zip_is_like_its_folder(clothes, families, tmp_path, inside):
    folder = tmp_path / "clothes"
    folder.mkdir()
    (tmp_path / "pack" / inside).mkdir(parents=True)
    shutil.copytree(clothes, tmp_path / "pack" / inside, dirs_exist_ok=True)
    (tmp_path / "pack" / inside / "attributes.csv").rename(folder / "attributes.csv")
    shutil.make_archive(str(folder / "images"), "zip", tmp_path / "pack")
    zipped = open_families(folder, ["class", "colour", "person"])
    assert [f.name for f in zipped] == [f.name for f in families]
    one, other = (tasks(divide_families(f, request=REQUEST)) for f in (zipped, families))
    for i in range(4):
        assert torch.equal(one.sample(i).support.inputs.tensor, other.sample(i).support.inputs.tensor)
    reader = pickle.loads(pickle.dumps(zipped[0].data_set.examples)).reader
    assert reader.open(3).size == (4, 4)
    assert [f.name for f in open_families(folder / "images.zip")] == ["clothes.class"]


def test_forked_processes_and_threads_may_read_one_archive(clothes, tmp_path):
    shutil.make_archive(str(tmp_path / "clothes"), "zip", clothes)
    examples = open_families(tmp_path / "clothes.zip")[0].data_set.examples
    expected = [np.array(image).tobytes() for image in examples.read(range(120))]  # opened before the fork
    with multiprocessing.get_context("fork").Pool(3) as pool:
        for found in pool.map(partial(_pixels, examples), [range(120)] * 6):
            assert found == expected
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: _pixels(examples, range(120)), range(8))) == [expected] * 8


def _pixels(examples, positions) -> list[bytes]:
    return [np.array(image).tobytes() for image in examples.read(positions)]


def test_a_broken_archive_is_refused_in_one_line(tmp_path):
    (tmp_path / "clothes.zip").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"clothes\.zip is no readable zip archive \(.*\); pack it anew"):
        open_families(tmp_path / "clothes.zip")


def test_parquet_has_columns_too(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"text": [f"text {i}" for i in range(60)], "topic": [f"t{i % 6}" for i in range(60)]}
    (tmp_path / "talk").mkdir()
    table = datasets.Dataset.from_dict(rows | {"mood": [f"m{i % 4}" for i in range(60)]})
    table.to_parquet(str(tmp_path / "talk" / "a.parquet"))
    families = open_families(tmp_path / "talk", ["topic", "mood"], kind="texts")
    assert [(f.name, f.labels[7]) for f in families] == [("talk.topic", "t1"), ("talk.mood", "m3")]


def test_parts_that_came_with_the_data_are_kept(tmp_path):
    for part, types in (("train", (0, 1, 2, 3)), ("val", (4, 5)), ("test", (6, 7))):
        for t in types:
            for i in range(4):
                file = tmp_path / "toys" / part / f"type{t}" / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (t, i, 0)).save(file)
    divided = divide_families(open_families(tmp_path / "toys"), request=replace(REQUEST, split="class"))
    assert {part: list(found["toys.class"].items) for part, found in divided.parts.items()} == {
        "train": ["type0", "type1", "type2", "type3"],
        "val": ["type4", "type5"],
        "test": ["type6", "type7"],
    }


def test_texts_have_columns_too(tmp_path):
    rows = [{"text": f"text {i}", "label": f"l{i % 8}", "domain": f"d{i % 3}"} for i in range(120)]
    rows += [
        {"text": "text 0", "label": "l7", "domain": "d0"},
        {"text": " ", "label": "l1"},
        {"text": "z", "label": None},
    ]
    with gzip.open(tmp_path / "talk.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))
    families = open_families(tmp_path / "talk.jsonl.gz", ["label", "domain"], kind="texts")
    assert [(f.name, len(f.labels)) for f in families] == [("talk.label", 121), ("talk.domain", 121)]
    report = divide_families(families, request=REQUEST).report
    assert "2 without a label, 1 of them because rows of one text disagree; 1 blank texts" in report[0]


def test_a_table_of_files(clothes, tmp_path):
    rows = list(csv.reader((clothes / "attributes.csv").open()))
    write_table(clothes.parent / "wardrobe.csv", rows[0], [(f"clothes/{r[0]}", *r[1:]) for r in rows[1:]])
    families = open_families(clothes.parent / "wardrobe.csv", ["colour", "person"])
    assert [(f.name, len(f.items)) for f in families] == [("wardrobe.colour", COLOURS), ("wardrobe.person", PEOPLE)]
    with pytest.raises(ValueError, match=r"wardrobe has the columns .*choose labels with label_columns"):
        open_families(clothes.parent / "wardrobe.csv")


def test_columns_of_one_data_set(clothes, tmp_path):
    other = write_clothes(tmp_path / "other", 3)
    names = [f.name for f in open_families([clothes, other], ["clothes:colour", "person"])]
    assert names == ["clothes.colour", "clothes.person", "other.person"]
    assert [f.name for f in open_families([clothes, other], ["clothes:colour"])] == ["clothes.colour", "other.class"]


def test_an_unreadable_photograph_is_in_no_family(tmp_path):
    root = write_clothes(tmp_path / "c", 4)
    (root / "type03" / "track0_1.png").write_bytes(b"nothing")
    families = open_families(root, ["class", "person"])
    assert [sum(map(len, f.items.values())) for f in families] == [TYPES * 4 - 1] * 2
    assert "1 images that cannot be read, such as" in divide_families(families, request=REQUEST).report[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["size"]}, r"label column 'size' is in no data set; there are \{'clothes': \['class', 'colour'"),
        ({"columns": ["weight"]}, r"column 'weight': labels are fractions"),
        ({"groups": ["patient"]}, r"group column 'patient' is no column of \['clothes'\] and fits no file name"),
        ({"groups": ["("]}, r"is no column and no regular expression"),
        ({"groups": ["person", "colour"]}, r"clothes has groups twice"),
        ({"kind": "sounds"}, r"kind='sounds': expected one of"),
    ],
)
def test_what_is_refused_when_opening(clothes, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_families(clothes, **arguments)
    assert "\n" not in str(caught.value)


def test_two_data_sets_of_one_name_are_refused(clothes):
    with pytest.raises(ValueError, match="two data sets are called 'clothes'"):
        open_families([clothes, clothes])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(REQUEST, hold_out=("hats.*",)), r"'hats\.\*' fits no family; there are clothes\.class, "),
        (replace(REQUEST, hold_out=("*.colour",), validation=("*.colour",)), "both held out and for validation"),
        (replace(REQUEST, hold_out=("*.colour",), split="family"), "divides families and there are 2"),
    ],
)
def test_what_is_refused_when_dividing(families, request_, message):
    with pytest.raises(ValueError, match=message):
        divide_families(families, request=request_)


def test_a_part_without_families_is_refused(families):
    divided = divide_families(families, request=replace(REQUEST, hold_out=("*",)))
    with pytest.raises(ValueError, match=r"no family has 2 classes of 1 \+ 2 examples in 'train'"):
        tasks(divided)
    with pytest.raises(ValueError, match="part='dev'"):
        tasks(divided, "dev")
