"""Data of people's own in the few-shot recipes: columns, encodings, rare classes, and what is printed about them."""

from __future__ import annotations

import few_shot_text
import few_shot_vision
import pytest
from small_data import pictures
from tiny import backbone

import mtl
from mtl.cli.answers import parse


@pytest.fixture(scope="module")
def network() -> mtl.Backbone:
    return backbone(sites="none", levels="all", in_chans=3)


def vision(*options: str) -> few_shot_vision.Config:
    line = "--backbone tiny --ways 2 --shots 2 --queries 2"
    return parse(few_shot_vision.Config, [*line.split(), *options])


def test_columns_of_a_single_table_of_images(tmp_path, network, capsys):
    folder = pictures(tmp_path / "data" / "inner", 10, 6)
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    table = "scan;kind;façade\n" + "".join(f"{f};{f.split('/')[0]};{i % 7}\n" for i, f in enumerate(files))
    (tmp_path / "data" / "t.csv").write_bytes(table.encode("latin-1"))
    chosen = ("--image-column", "scan", "--label-columns", "façade", "--image-folder", str(folder))
    read = ("--encoding", "latin-1", "--data", str(tmp_path / "data" / "t.csv"), "--out", str(tmp_path / "run"))
    tasks = few_shot_vision.maker(vision(*chosen, *read), network)("train", 2, 2)
    assert isinstance(tasks, mtl.data.FamilyTasks)
    assert tasks.names == ("t.façade",)
    assert "t.façade: 60 images, 7 classes" in capsys.readouterr().out


def test_one_rare_class_and_other_files_do_not_stop_a_run(tmp_path, network, capsys):
    folder = pictures(tmp_path / "data", 10, 4)
    (folder / "class 0" / "3.png").rename(folder / "class 0" / "3.heic")
    config = vision("--data", str(folder), "--out", str(tmp_path / "run"))
    tasks = few_shot_vision.maker(config, network)("train", 2, 2)
    assert isinstance(tasks, mtl.ClassTasks)
    assert len(tasks.collection.class_names) == 9
    printed = capsys.readouterr().out
    assert "1 classes of fewer than 4 images are left out: 'class 0' (3)" in printed
    assert "1 files of other kinds are left out: 1 .heic, such as class 0/3.heic" in printed


def test_sites_are_chosen_by_the_command_line(tmp_path, network):
    for site in ("east", "west"):
        pictures(tmp_path / "data" / site, 10, 4 if site == "east" else 6)
    line = ("--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"--class-level 1.*--class-level 2"):
        few_shot_vision.maker(vision(*line), network)
    tasks = few_shot_vision.maker(vision(*line, "--class-level", "2"), network)("train", 2, 2)
    assert isinstance(tasks, mtl.ClassTasks)
    assert len(tasks.collection.class_names) == 10


def test_few_classes_are_answered_before_anything_is_stored(tmp_path, network):
    line = ("--data", str(pictures(tmp_path / "data", 5, 6)), "--out", str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"ways=2 takes 2 .*8 in all are enough.*--split example"):
        few_shot_vision.maker(vision(*line), network)
    tasks = few_shot_vision.maker(vision(*line, "--split", "example", "--min-per-class", "1", "--shots", "1"), network)
    assert tasks("train", 1, 1).sample(0).ways == 2


@pytest.mark.parametrize("option", [("--image-column", "a"), ("--encoding", "latin-1"), ("--class-level", "1")])
def test_options_for_own_data_are_refused_without_data(option):
    with pytest.raises(ValueError, match=rf"{option[0]} is about data of your own: name it with --data"):
        parse(few_shot_vision.Config, list(option))


def test_a_text_in_another_encoding(tmp_path):
    rows = "".join(f"le garçon {'é' * i} {c},c{c}\n" for c in range(10) for i in range(5))
    (tmp_path / "t.csv").write_bytes(f"text,label\n{rows}".encode("latin-1"))
    line = (
        f"--backbone tiny --ways 2 --shots 2 --queries 2 --data {tmp_path / 't.csv'} --out {tmp_path / 'run'}".split()
    )
    network = mtl.load_backbone("mtl/glyphs", pretrained=False, sites="none")  # no text is tokenised here
    with pytest.raises(ValueError, match=r"t.csv, line 2: byte 17 \(0xe7\) is not utf-8; .*--encoding latin-1"):
        few_shot_text.maker(parse(few_shot_text.Config, line), network)
    tasks = few_shot_text.maker(parse(few_shot_text.Config, [*line, "--encoding", "latin-1"]), network)("train", 2, 2)
    assert tasks.collection.texts[1] == "le garçon é 0"
