import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mtl
from mtl.episode import Identified
from mtl.tools.identity import as_json, differences, digest, identity_of, list_differences, sketch

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4) | st.binary()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=3))
SETTINGS = st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 3) | st.lists(st.integers(0, 2)))


def told_apart(a, b) -> bool:
    """Equal, also in type: 1, 1.0 and True are three values."""
    return repr(_sorted(a)) != repr(_sorted(b))


def _sorted(value):
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value)}
    return [_sorted(v) for v in value] if isinstance(value, list) else value


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES)
def test_a_digest_changes_when_and_only_when_the_value_does(a, b):
    assert (digest(a) != digest(b)) == told_apart(a, b)


@settings(max_examples=200, deadline=None)
@given(SETTINGS, SETTINGS)
def test_settings_differ_when_and_only_when_a_line_says_so(a, b):
    found = differences({"run": a}, {"run": b})
    assert bool(found) == (a != b)
    if a and b:
        assert {f.partition(":")[0] for f in found} == {f"run.{k}" for k in a | b if a.get(k) != b.get(k)}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2), st.integers(0, 3), st.integers(0, 30), st.sampled_from([torch.float32, torch.bfloat16]))
def test_one_changed_bit_of_a_tensor_changes_its_digest(row, column, bit, dtype):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    changed = values.clone()
    pattern = changed.view(torch.int32 if dtype == torch.float32 else torch.int16)
    pattern[row, column] ^= 1 << bit % (8 * dtype.itemsize - 1)
    assert digest(values) != digest(changed)
    assert digest(values) == digest(values.clone().t().contiguous().t())


def test_a_digest_is_the_same_under_another_hash_seed():
    code = (
        "import torch, numpy as np\nfrom mtl.tools.identity import digest\n"
        "print(digest({'b', 'a', 'c'}, {'x': 1, 'y': [2.5, None]}, torch.arange(3), np.ones(2), b'z', 'é'))"
    )
    run = lambda seed: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    here = digest({"c", "a", "b"}, {"y": [2.5, None], "x": 1}, torch.arange(3), np.ones(2), b"z", "é")
    assert run("1") == run("2") == here + "\n"


def test_shape_dtype_and_picture_mode_count():
    assert digest(torch.zeros(4)) != digest(torch.zeros(2, 2)) != digest(torch.zeros(2, 2, dtype=torch.int32))
    assert digest(Image.new("L", (2, 2))) != digest(Image.new("L", (4, 1)))


def test_what_no_other_process_would_recognise_is_refused():
    with pytest.raises(ValueError, match="give its class a __repr__"):
        digest(lambda: 0)
    with pytest.raises(ValueError, match="does not fit into JSON"):
        as_json({"a": torch.zeros(1)})


def test_numbers_of_numpy_are_the_same_numbers():
    told = {"ways": np.int64(5), "range": (np.int32(1), 2), "lr": np.float64(0.5), "yes": np.bool_(True)}
    assert as_json(told) == {"ways": 5, "range": [1, 2], "lr": 0.5, "yes": True}
    assert differences(as_json(tasks(ways=np.int64(2), seed=np.int64(0)).identity()), tasks().identity()) == []


def test_a_sketch_ignores_rounding_and_nothing_else():
    values = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rounded = values + 1e-3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    assert differences(sketch(values), sketch(rounded)) == []
    other = values.clone()
    other[3] = torch.randn(50)
    for changed in (other, values.flip(0), 1.2 * values, values[:5], torch.zeros(6, 50)):
        assert differences(sketch(values), sketch(changed))


def test_a_message_is_one_line_of_readable_length():
    line = list_differences(differences({}, {str(i): "x\n" * 1000 for i in range(20)}))
    assert "\n" not in line
    assert len(line) < 1000
    assert line.endswith("and 14 more")


# --- task sources -----------------------------------------------------------------------------------------------------


class Poorer:
    """Episodes without an identity."""

    def __init__(self, **changes) -> None:
        self.blobs = tiny.Blobs(**changes)

    def sample(self, index: int) -> mtl.Episode:
        return self.blobs.sample(index)


def test_a_source_without_identity_is_known_by_its_episodes():
    known = identity_of(Poorer(), (0, 5))
    assert json.loads(json.dumps(known)) == known == identity_of(Poorer(), (5, 0))
    assert differences(known, identity_of(Poorer(ways=2), (0, 5)))[0].startswith("episodes.0.ways: 3 there, 2 now")
    for changes in ({"shots": 1}, {"queries": 4}, {"poisoned": (5,)}):
        assert differences(known, identity_of(Poorer(**changes), (0, 5))), changes


def test_a_source_that_differs_from_call_to_call_is_named():
    class Random(Poorer):
        def sample(self, index: int) -> mtl.Episode:
            return self.blobs.sample(int(torch.randint(1000, ())))

    with pytest.warns(UserWarning, match=r"Random.sample\(0\) differs from call to call"):
        assert identity_of(Random(), (0, 1)) == identity_of(Random(), (0, 1))


def test_glyphs_and_characters_by_every_setting():
    made = [
        mtl.GlyphTasks("train"), mtl.GlyphTasks("val"), mtl.GlyphTasks("train", ways=3),
        mtl.GlyphTasks("train", shots=(1, 5)), mtl.GlyphTasks("train", queries=3), mtl.GlyphTasks("train", seed=1),
        mtl.GlyphTasks("train", families=("defect",)),
        mtl.data.CharacterTasks("train"), mtl.data.CharacterTasks("train", rotations=False),
        mtl.data.CharacterTasks("train", shots=2), mtl.data.CharacterTasks("train", seed=3),
        mtl.Alternating([mtl.GlyphTasks("train")]), mtl.Alternating([mtl.GlyphTasks("train")], 2),
        mtl.Alternating([Poorer()]), mtl.Alternating([Poorer(shots=1)]),
    ]  # fmt: skip
    assert all(isinstance(source, Identified) for source in made)
    told = [json.dumps(source.identity()) for source in made]
    assert len(set(told)) == len(made)
    assert mtl.GlyphTasks("train", ways=(5, 5)).identity() == made[0].identity()


# --- collections and their tasks --------------------------------------------------------------------------------------

TEXTS = {"spam": ("buy", "now", "cheap"), "ham": ("hello", "lunch", "thanks"), "else": ("a", "b", "c")}


def texts(changes: dict | None = None) -> mtl.data.TextCollection:
    by_class = TEXTS | (changes or {})
    everything = [t for group in by_class.values() for t in group]
    places = iter(range(len(everything)))
    items = {name: tuple(next(places) for _ in group) for name, group in by_class.items()}
    return mtl.data.TextCollection("mail", dict(sorted(items.items())), everything)


def letters(items: list[str]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[ord(c) for c in text[:4].ljust(4)] for text in items])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def capitals(items: list[str]) -> dict[str, torch.Tensor]:
    return letters([text.upper() for text in items])


def tasks(collection=None, classes=("spam", "ham"), preprocess=letters, **changes) -> mtl.ClassTasks:
    sizes = {"ways": 2, "shots": 1, "queries": 1} | changes
    return mtl.ClassTasks(collection or texts(), classes, preprocess=preprocess, **sizes)


def test_class_tasks_are_told_apart_by_everything_that_counts():
    groups = {i: f"group {i}" for i in range(9)}
    changed = {
        "texts": tasks(texts({"spam": ("buy", "now", "dear")})),
        "order": tasks(texts({"spam": ("now", "buy", "cheap")})),
        "labels": tasks(texts({"spam": ("buy", "now", "hello"), "ham": ("cheap", "lunch", "thanks")})),
        "classes": tasks(classes=("spam", "else")),
        "more classes": tasks(classes=("spam", "ham", "else")),
        "preprocessing": tasks(preprocess=capitals),
        "groups": tasks(replace(texts(), groups=groups)),
        "shots": tasks(shots=2),
        "queries": tasks(queries=2),
        "ways": tasks(classes=("spam", "ham", "else"), ways=(2, 3)),
        "seed": tasks(seed=1),
        "family": tasks(family="mail"),
    }
    told = {name: json.dumps(source.identity()) for name, source in changed.items()} | {"as it was": tasks().identity()}
    assert len(set(map(str, told.values()))) == len(told)


def test_what_does_not_count():
    known = tasks().identity()
    assert tasks(texts({"else": ("x", "y", "z")})).identity() == known  # classes that are never drawn
    assert tasks(replace(texts(), source="elsewhere")).identity() == known
    assert tasks(classes=("ham", "spam")).identity() == known
    assert tasks(preprocess=mtl.data.InputCache(letters, 0)).identity() == known


def test_the_version_of_a_cache_names_its_preprocessing(tmp_path):
    version = lambda v: tasks(preprocess=mtl.data.InputCache(letters, folder=tmp_path, version=v)).identity()  # noqa: E731
    assert version("1") == version("1") != version("2")


def test_the_preprocessing_of_a_backbone_is_known_without_looking_at_examples(images):
    small, larger = tiny.backbone(), tiny.backbone(img_size=24)
    collection = images("a")
    known = image_tasks(collection, small.preprocess).identity()
    assert known["preprocessing"]["method"] == "preprocess"
    assert differences(known, image_tasks(collection, larger.preprocess).identity())
    torch.manual_seed(7)
    other = tiny.backbone()
    with torch.no_grad():
        other.load_state_dict(small.state_dict())
    assert image_tasks(collection, other.preprocess).identity() == known


@pytest.fixture
def images(tmp_path):
    def folder(name: str, shade: int = 0, broken: bool = False):
        for c in ("ash", "oak"):
            (tmp_path / name / c).mkdir(parents=True)
            for i in range(3):
                value = 40 * i + (20 if c == "oak" else 0) + (shade if (c, i) == ("oak", 2) else 0)
                Image.new("L", (16, 16), value).save(tmp_path / name / c / f"{i}.png")
        return mtl.open_images(tmp_path / name, mode="L")

    return folder


def image_tasks(collection: mtl.data.ImageCollection, preprocess) -> mtl.ClassTasks:
    return mtl.ClassTasks(collection, ["ash", "oak"], preprocess=preprocess, ways=2, shots=1, queries=1)


def test_the_same_names_with_other_pixels_are_other_images(images):
    known = images("a").identity()
    assert images("b").identity() == known  # elsewhere
    found = differences(known, images("c", shade=1).identity())
    assert [f.partition(":")[0] for f in found] == ["contents"]


def test_the_same_images_in_a_zip_and_a_table_are_known_by_their_contents(images, tmp_path):
    import shutil

    import datasets

    known = images("a").identity()
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "a")
    [family] = mtl.data.open_families(archive, mode="L")
    assert family.data_set.examples.select(family.items).identity() == known
    cells = [{"image": str(p), "label": p.parent.name} for p in sorted((tmp_path / "a").rglob("*.png"))]
    table = datasets.Dataset.from_list(cells).cast_column("image", datasets.Image())
    assert mtl.open_images(table, mode="L").identity() == known


def test_each_example_is_read_once_for_all_tasks_on_it(images, monkeypatch):
    from mtl.data.own.images.files import Files

    collection, read = images("a"), []
    contents = Files.contents
    monkeypatch.setattr(Files, "contents", lambda self, i: read.append(i) or contents(self, i))
    backbone = tiny.backbone()
    for _ in range(3):
        image_tasks(collection, backbone.preprocess).identity()
    assert sorted(read) == list(range(6))
