"""The embedded benchmark: splits share nothing, episodes keep their rules, the cache is written once and whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import timm
import torch

from mtl.data.embedded import glyph_drawing, glyph_tasks, glyphs, scans
from mtl.data.embedded.glyph_drawing import Attributes, labelled_images, load_bank
from mtl.data.embedded.glyph_images import letter_images
from mtl.data.embedded.glyph_tasks import FAMILIES, GlyphTasks, Plan
from mtl.data.embedded.glyphs import SPLITS, load_scripts
from mtl.data.embedded.shapes import LOOKALIKE, similarities
from mtl.networks.backbones.timm_networks import EMBEDDED_WEIGHTS, embedded_info

HELD_OUT = ("train", "val", "test")


def values(attributes: Attributes, family: str) -> list[tuple[int, ...]]:
    columns = {"typeface": (attributes.file, attributes.style)}.get(family) or (getattr(attributes, family),)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def plans(split: glyphs.Split = "test", n: int = 80, **options) -> list[Plan]:
    return [GlyphTasks(split, **options).plan(i) for i in range(n)]


def query_images(tasks: GlyphTasks, index: int) -> torch.Tensor:
    return tasks.sample(index).query.inputs.tensor


# ------------------------------------------------------------------------------------------------------------- splits


def test_no_two_letters_of_any_split_look_alike_in_any_orientation():
    shapes = torch.cat([s.masters[:, 0] for split in SPLITS for s in load_scripts(split)])
    similarity, _ = similarities(shapes)
    similarity.fill_diagonal_(0)
    assert similarity.max() < LOOKALIKE + 1e-4  # float32 sums in another order


def test_known_lookalikes_are_recognised_and_different_letters_are_not():
    letters = "A\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}sSbqnuEFRK"
    shapes = torch.stack([torch.from_numpy(glyphs.render(c, "DejaVuSans").copy()) for c in letters])
    similarity, itself = similarities(shapes)
    same = similarity > LOOKALIKE
    assert same[0, 1]
    assert same[0, 2]
    assert same[3, 4]
    assert same[5, 6]
    assert same[7, 8]
    assert not same[9, 10]
    assert not same[11, 12]
    assert itself[3] > glyphs.ASYMMETRIC > itself[10]


@pytest.mark.parametrize("table", [scans.STYLES, scans.ANGLES, scans.DEFECTS])
def test_styles_angles_and_defects_of_splits_are_disjoint(table):
    for a, b in itertools.combinations(SPLITS, 2):
        assert not set(table[a]) & set(table[b])
    assert all(len(set(table[s])) == len(table[s]) >= 8 for s in SPLITS)


def test_characters_of_splits_are_disjoint_and_plenty():
    letters = {split: [c for s in load_scripts(split) for c in s.characters] for split in SPLITS}
    assert len(set().union(*letters.values())) == sum(map(len, letters.values()))
    assert all(len(x) > 30 for x in letters.values())


@pytest.mark.parametrize("split", SPLITS)
def test_every_letter_is_drawn_in_every_file_of_its_script(split):
    for script in load_scripts(split):
        assert script.masters.shape == (len(script.characters), len(script.files), 64, 64)
        assert (script.masters.flatten(2).amax(2) > 200).all()


# ----------------------------------------------------------------------------------------------------------- episodes


def test_an_episode_depends_on_seed_split_and_index_alone():
    first, other = GlyphTasks("test", seed=3), GlyphTasks("test", seed=3)
    other.sample(0)
    torch.rand(5)
    np.random.default_rng().random()
    images = query_images(first, 7)
    assert torch.equal(images, query_images(other, 7))
    for tasks, index in ((GlyphTasks("test", seed=4), 7), (GlyphTasks("train", seed=3), 7), (first, 11)):
        assert not torch.equal(images, query_images(tasks, index))


def test_shapes_labels_and_families():
    tasks = GlyphTasks("val", ways=4, shots=3, queries=2)
    episodes = [tasks.sample(i) for i in range(8)]
    assert [e.families[0] for e in episodes] == [*FAMILIES, *FAMILIES]
    for e in episodes:
        assert (e.tasks, e.ways) == (1, 4)
        assert e.support.inputs.shape == (1, 12, 1, 32, 32)
        assert e.query.inputs.shape == (1, 8, 1, 32, 32)
        assert e.query.labels.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]
        assert torch.isfinite(e.query.inputs.tensor).all()


def test_ranges_of_ways_and_shots():
    drawn = plans(n=60, ways=(2, 6), shots=(1, 3))
    assert {p.ways for p in drawn} == {2, 3, 4, 5, 6}
    assert {p.shots for p in drawn} == {1, 2, 3}
    assert all(len(p.support.character) == p.ways * p.shots for p in drawn)


@pytest.mark.parametrize("split", HELD_OUT)
def test_the_label_is_one_attribute_and_the_others_come_from_small_pools(split):
    for p in plans(split, shots=2):
        for attribute in FAMILIES:
            shown = values(p.support, attribute) + values(p.query, attribute)
            if attribute == p.family:
                by_class = [set(values(p.support, attribute)[2 * c : 2 * c + 2]) for c in range(p.ways)]
                assert len(set().union(*by_class)) == p.ways
                if attribute != "typeface":
                    assert all(len(one) == 1 for one in by_class)
            else:
                assert len(set(values(p.support, attribute))) <= 3
                assert len(set(shown)) <= 6


def test_query_classes_mean_the_same_as_support_classes():
    for p in plans(shots=1):
        support = values(p.support, p.family)
        assert values(p.query, p.family) == [support[c] for c in range(p.ways) for _ in range(10)]


APART = {"character": "typeface", "orientation": "typeface", "typeface": "character", "defect": "character"}


@pytest.mark.parametrize("split", HELD_OUT)
def test_support_and_query_do_not_share_what_they_must_not(split):
    for p in plans(split):
        attribute = APART[p.family]
        assert not set(values(p.support, attribute)) & set(values(p.query, attribute))


def test_nuisances_say_nothing_about_the_class():
    drawn = [p for p in plans(n=400, shots=1, families=("character",)) if len(set(p.query.defect)) == 2]
    first = np.array([p.query.defect.reshape(5, 10) == p.query.defect.min() for p in drawn])
    spread = first.mean((0, 2)) - 0.5  # one number per class
    assert np.abs(spread).max() < 4 * 0.5 / np.sqrt(10 * len(drawn)) + 0.02


def test_orientation_episodes_use_letters_that_have_an_upright():
    orientable = load_bank("test").orientable
    assert all(orientable[p.support.character].all() for p in plans(families=("orientation",)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ways": 9}, r"ways=9: the orientation family of split 'test' has 8 classes"),
        ({"ways": (2, 99), "families": ("character",)}, r"ways=\(2, 99\): the character family"),
        ({"ways": 1}, "ways=1: expected an integer of at least 2"),
        ({"shots": (3, 2)}, r"shots=\(3, 2\)"),
        ({"queries": 0}, "queries=0"),
        ({"families": ("colour",)}, "'colour' is not one of character, typeface"),
        ({"families": ()}, "name at least one"),
    ],
)
def test_errors_name_the_value_and_the_way_out(options, words):
    with pytest.raises(ValueError, match=words):
        GlyphTasks("test", **options)


def test_unknown_split():
    with pytest.raises(ValueError, match="split='dev': expected one of pretrain, train, val, test"):
        GlyphTasks("dev")  # type: ignore[arg-type]


def test_as_many_ways_as_there_are_can_be_drawn():
    for family, most in glyph_tasks.classes("test").items():
        assert GlyphTasks("test", ways=most, shots=1, queries=1, families=(family,)).sample(0).ways == most


# ------------------------------------------------------------------------------------------------------------- images


def test_slant_leans_right_and_turn_is_counter_clockwise():
    bar = torch.zeros(1, 64, 64, dtype=torch.uint8)
    bar[:, 6:58, 30:34] = 255
    one = torch.ones(1)

    def centre_of_top(slant: float, degrees: float) -> float:
        ink = scans.place(bar, slant * one, one, degrees * one, torch.Generator().manual_seed(0))[0, 0]
        return float((ink[:10].sum(0) * torch.arange(32)).sum() / ink[:10].sum())

    upright = centre_of_top(0, 0)
    assert centre_of_top(0.4, 0) > upright + 1
    assert centre_of_top(0, 30) < upright - 1


@pytest.mark.parametrize("kind", scans.KINDS)
def test_a_defect_changes_the_ink_and_keeps_its_range(kind):
    masters = load_bank("test").masters[:14, 1]
    one = torch.ones(14)
    ink = scans.place(masters, 0 * one, one, 0 * one, torch.Generator().manual_seed(0))
    settings = [scans.Defect(kind, a, b) for a, b in scans.SETTINGS[kind]] * 2
    damaged = scans.damage(ink, settings, torch.Generator().manual_seed(0))
    assert 0 <= damaged.min() <= damaged.max() <= 1 + 1e-6
    assert ((damaged - ink).abs().mean((1, 2, 3)) > 0.005).all()


def test_documents_invert_and_stay_in_range():
    ink = torch.zeros(2, 1, 32, 32)
    generator = torch.Generator().manual_seed(0)
    assert scans.Document().apply(ink, generator).mean() > 0.9
    assert scans.Document(inverted=True).apply(ink, generator).mean() < 0.1
    pixels = scans.Document.draw(generator).apply(torch.rand(8, 1, 32, 32), generator)
    assert 0 <= pixels.min() <= pixels.max() <= 1


def test_labelled_images_for_pretraining():
    images, attributes = labelled_images("pretrain", 16, np.random.default_rng(0))
    again, _ = labelled_images("pretrain", 16, np.random.default_rng(0))
    assert images.shape == (16, 1, 32, 32)
    assert torch.equal(images, again)
    assert all(len(c) == 16 for c in attributes.columns())


# -------------------------------------------------------------------------------------------------- cache and backbone


@pytest.fixture
def tiny_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(glyphs, "build", lambda: {"latin/characters": np.array(["A"])})
    return tmp_path / "cache"


def test_the_cache_is_written_once(tiny_cache, monkeypatch):
    path = glyphs.ensure_cache()
    assert path.parent == tiny_cache
    monkeypatch.setattr(glyphs, "build", lambda: pytest.fail("rendered twice"))
    assert glyphs.ensure_cache() == path
    assert [p.name for p in tiny_cache.iterdir()] == [path.name]


def test_a_failed_write_leaves_nothing_behind(tiny_cache, monkeypatch):
    def die(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(glyphs.np, "savez_compressed", die)
    with pytest.raises(OSError, match="disk full"):
        glyphs.ensure_cache()
    assert list(tiny_cache.iterdir()) == []


def test_shipped_backbone_loads_into_a_plain_timm_model():
    info = embedded_info()
    model = timm.create_model(info["model"], **info["kwargs"], checkpoint_path=str(EMBEDDED_WEIGHTS)).eval()
    images, _ = labelled_images("pretrain", 4, np.random.default_rng(0))
    with torch.no_grad():
        features = model(images)
    assert features.shape == (4, model.num_features)
    assert features.std(0).mean() > 0.01
    assert (info["mean"], info["std"]) == (glyph_drawing.MEAN, glyph_drawing.STD)


def test_letter_images_show_every_letter_once_a_round():
    images, labels = letter_images(("georgian", "armenian"), 2, seed=3)
    n = len(labels) // 2
    assert images.shape == (2 * n, 1, 32, 32)
    assert labels.tolist() == [*range(n), *range(n)]
    assert n == sum(len(s.characters) for s in load_scripts("test") if s.name in ("georgian", "armenian"))
    again, _ = letter_images(("georgian", "armenian"), 1, seed=3)
    assert torch.equal(again, images[:n])
    assert not torch.equal(letter_images(("georgian", "armenian"), 1, seed=4)[0], again)
    assert (images[:n] - images[n:]).abs().mean() > 0.05, "another page, other typefaces"
    for bad, message in ((("elvish",), "none of"), (("latin", "greek"), "scripts of one"), ((), "at least one script")):
        with pytest.raises(ValueError, match=message):
            letter_images(bad, 1, 0)
    with pytest.raises(ValueError, match="at least one image"):
        letter_images(("lao",), 0, 0)
