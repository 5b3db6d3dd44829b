"""The commands as they are typed: labelled examples to answers, training to a generator, and what each prints."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image
from small_data import pictures

import mtl
from mtl.cli.commands.info import EXTRAS
from mtl.cli.main import NAMES, main

ROOT = Path(__file__).parents[2]
LITTLE = (
    "--ways 2 --shots 1 --queries 2 --warm-steps 2 --tasks-per-step 2 --validation-tasks 2 --steps 0 "
    "--tuning-episodes 2 --test-episodes 2 --baselines ncm ridge --tracker none"
)


def typed(line: str) -> None:
    main(line.split())


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as f:
        return list(csv.DictReader(f))


def test_images_to_answers(here: Path, capsys):
    typed("adapt --backbone mtl/glyphs --data labelled --unlabelled new --out returns.mtl")
    said = capsys.readouterr().out
    assert "3 classes of images: class 0 (4), class 1 (4), class 2 (4)" in said
    assert said.splitlines()[-1].split(None, 1) == ["next", "mtl predict --task returns.mtl new"]
    typed("predict --task returns.mtl new --top-k 2")
    rows = rows_of(here / "predictions.csv")
    assert [row["filename"] for row in rows] == [f"class {c}/{i}.png" for c in range(3) for i in range(2)]
    for row in rows:
        each = {name: float(row[f"p({name})"]) for name in ("class 0", "class 1", "class 2")}
        assert sum(each.values()) == pytest.approx(1, abs=1e-3)
        assert float(row["probability"]) == max(each.values()) == each[row["label"]]
        assert float(row["probability 2"]) == sorted(each.values())[1] == each[row["label 2"]]
    task = mtl.load_task("returns.mtl")
    assert [row["label"] for row in rows] == task.predict("new", progress=False)


def test_unsure_answers_are_left_out(here: Path, capsys):
    typed("adapt --backbone mtl/glyphs --data labelled --out t.mtl")
    typed("predict --task t.mtl new --reject 0.9")
    expected = ["" if name is None else name for name in mtl.load_task("t.mtl").predict("new", reject=0.9)]
    assert [row["label"] for row in rows_of(here / "predictions.csv")] == expected
    assert "" in expected
    assert f"none of these {expected.count('')}" in capsys.readouterr().out


def test_texts_to_answers(here: Path, encoder: str, capsys):
    columns = "--text-column note --label-column kind"
    typed(f"adapt --backbone {encoder} --data labelled.csv {columns} --max-length 8")
    assert "labelled.mtl: 3 classes" in capsys.readouterr().out, "named after the data"
    typed("predict --task adapted/labelled.mtl new.txt --out answers.csv")
    rows = rows_of(here / "answers.csv")
    assert [(row["number"], row["text"]) for row in rows] == [
        ("0", "a text of a kind"),
        ("1", "another of a kind of a kind"),
    ]
    assert mtl.load_task("adapted/labelled.mtl").backbone.adapter.reading is not None


def test_what_cannot_be_read_is_left_out_and_named(here: Path, capsys):
    typed("adapt --backbone mtl/glyphs --data labelled --out t.mtl")
    (here / "new" / "broken.png").write_bytes(b"no image")
    typed("predict --task t.mtl new")
    assert len(rows_of(here / "predictions.csv")) == 6
    assert "left out, unreadable: 1 files, new/broken.png" in capsys.readouterr().out


def test_a_file_of_another_kind_leaves_earlier_answers(here: Path, capsys):
    typed("adapt --backbone mtl/glyphs --data labelled --out task.mtl")
    (here / "predictions.csv").write_text("earlier")
    with pytest.raises(SystemExit):
        typed("predict --task task.mtl labelled.csv")
    assert "labelled.csv: nothing there that can be read as images" in capsys.readouterr().err
    assert (here / "predictions.csv").read_text() == "earlier"


def test_all_images_are_seen_alike(here: Path):
    """Cameras store pictures on their side and note it down: labelled and unlabelled ones are both turned upright."""
    lying = Image.linear_gradient("L")
    exif = lying.getexif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    for name, stored in (("across", lying.rotate(90)), ("down", lying)):
        (here / "gradients" / name).mkdir(parents=True)
        stored.save(here / "gradients" / name / "0.png")
    lying.rotate(90).save(here / "one.png", exif=exif)  # upright, this is the class "down"
    typed("adapt --backbone mtl/glyphs --data gradients --out g.mtl")
    typed("predict --task g.mtl one.png")
    [row] = rows_of(here / "predictions.csv")
    assert (row["filename"], row["label"]) == ("one.png", "down")


def test_columns_that_are_named(here: Path):
    rows = [f"class {c}/{i}.png,{kind}" for c, kind in enumerate(("oak", "elm")) for i in range(3)]
    (here / "table.csv").write_text("\n".join(["picture,species", *rows]))
    columns = "--image-column picture --label-column species --image-folder labelled"
    typed(f"adapt --backbone mtl/glyphs --data table.csv {columns} --out t.mtl")
    assert mtl.load_task("t.mtl").class_names == ("elm", "oak")


def test_texts_in_another_encoding(here: Path, encoder: str, capfd):
    (here / "t.csv").write_bytes("text,label\ngarçon,a\ngarçons,a\nfille,b\nfilles,b\n".encode("latin-1"))
    (here / "n.txt").write_bytes("le garçon\n".encode("latin-1"))
    with pytest.raises(SystemExit):
        typed(f"adapt --backbone {encoder} --data t.csv --out t.mtl")
    assert "--encoding latin-1" in capfd.readouterr().err
    typed(f"adapt --backbone {encoder} --data t.csv --out t.mtl --encoding latin-1")
    typed("predict --task t.mtl n.txt --encoding latin-1")
    assert [row["text"] for row in rows_of(here / "predictions.csv")] == ["le garçon"]


def test_train_adapt_and_the_same_again(here: Path, capsys):
    pictures(here / "many", 9, 4)
    main(["train", "--data", "many", "--backbone", "mtl/glyphs", "--out", "run", *LITTLE.split()])
    said = capsys.readouterr().out
    assert "generator  run/channelwise/final" in said
    assert "run/episodes.png" in said
    assert said.splitlines()[-1] == "next       mtl adapt --generator run/channelwise/final --data LABELLED"
    before = {path: path.stat().st_mtime_ns for path in (here / "run").rglob("*") if path.is_file()}
    typed("train --config run")
    assert {path: path.stat().st_mtime_ns for path in (here / "run").rglob("*") if path.is_file()} == before
    assert "2-way 1-shot, 2 episodes" in capsys.readouterr().out
    typed("adapt --generator run/channelwise/final --data labelled --out own.mtl --no-cross-validate")
    typed("predict --task own.mtl new")
    assert len(rows_of(here / "predictions.csv")) == 6
    capsys.readouterr()
    typed("info run")
    facts = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert facts["state"] == "finished"
    assert facts["final"] == "run/channelwise/final"
    typed("info run/channelwise/final")
    facts = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert facts["kind"] == "channelwise"
    assert facts["network"] == "mtl/glyphs"


def test_train_through_a_loop_over_levels(here: Path, capsys):
    pictures(here / "many", 9, 6)
    through = LITTLE.replace("--shots 1", "--shots 2").replace("--steps 0", "--steps 2 --inner-steps 3")
    typed(f"train --data many --backbone mtl/glyphs --out run --generator refined --learn rates {through}")
    said = capsys.readouterr().out
    assert "generator, 3 steps" in said
    assert "generator, 0 steps" in said
    learner = mtl.from_pretrained(here / "run" / "refined" / "final")
    assert (learner.inner_steps, type(learner.optimizer).__name__) == (3, "EmittedSGD")
    warm = mtl.from_pretrained(here / "run" / "refined" / "0-inner-steps" / "best").generator.state_dict()
    through = learner.generator.state_dict()
    moved = {name.removeprefix("rule.").split(".")[0] for name, value in through.items() if (value != warm[name]).any()}
    assert moved == {"rates", "step_sizes_of"}


def test_train_on_texts(here: Path, encoder: str):
    with (here / "many.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("text", "label"), *((f"{'a b ' * c}{i}", c) for c in range(9) for i in range(4))])
    main(["train", "--data", "many.csv", "--backbone", encoder, "--out", "run", "--max-length", "8", *LITTLE.split()])
    assert "| class | one of its examples |" in (here / "run" / "episodes.md").read_text()
    config = json.loads((here / "run" / "config.json").read_text())["config"]
    assert config["max_length"] == 8


def test_compare(here: Path, capsys):
    pictures(here / "many", 9, 4)
    line = (
        "compare --data many --backbone mtl/glyphs --ways 2 --shots 1 --queries 2 --test-episodes 3 "
        "--tuning-episodes 2 --baselines ncm ridge --own-steps 2"
    )
    typed(line)
    said = capsys.readouterr().out
    found = mtl.Comparison.from_json("runs/compare/1-shot.json")
    kinds = [row.kind for row in found.rows]
    assert kinds == ["ours"] * 4 + ["baseline"] * 2
    assert found.reference.startswith("ready generator, cross-validated")
    assert "over the best baseline" in said
    assert "your own generator adds" in said
    assert "mtl adapt --generator runs/compare/channelwise/final --data LABELLED" in said
    assert "runs/compare/report.html" in said
    assert "nearest class mean" in Path("runs/compare/report.html").read_text()
    kept = (Path("runs/compare/comparison") / "results.jsonl").read_bytes()
    typed(line)
    assert (Path("runs/compare/comparison") / "results.jsonl").read_bytes() == kept, "nothing is done twice"
    page = Path("runs/compare/report.html").read_text()
    assert "not finished" not in page
    assert "tuning_episodes" in page, "what it was told"
    typed("compare --config runs/compare --out again")
    assert [row.method for row in mtl.Comparison.from_json("again/1-shot.json").rows] == [r.method for r in found.rows]
    capsys.readouterr()
    typed("info again")
    said = capsys.readouterr().out
    assert "mtl compare --config again" in said
    assert "not finished" not in said
    Path("again/config.json").write_text('{"config": {"generator": "channelwise"}}')
    with pytest.raises(SystemExit):
        typed("compare --config runs/compare --out again")
    assert "--out again: a run of mtl train is there; choose another folder" in capsys.readouterr().err


def test_info(here: Path, capsys):
    typed("adapt --backbone mtl/glyphs --data labelled --out t.mtl")
    capsys.readouterr()
    typed("info t.mtl")
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["classes"].strip() == "class 0, class 1, class 2"
    assert facts["network"].strip() == "mtl/glyphs"
    known = mtl.load_task("t.mtl").calibration
    assert facts["temperature"].strip() == f"{known.temperature:.3g}, from {known.left_out} left-out examples"
    typed("info mtl/glyphs")
    told = capsys.readouterr().out
    assert "images" in told
    assert facts["fingerprint"].strip() in told, "as the file says it"
    typed("info")
    facts = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert facts["mtl"] == mtl.__version__
    assert facts["torch"] == version("torch")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name: [re.split(r"[=<>\[ ]", line)[0] for line in lines] for name, lines in extras.items()}
    assert {name: list(names) for name, names in EXTRAS.items()} | {"dev": named["dev"]} == named
    assert all(f"mtl[{name}]" in facts for name in EXTRAS)


def test_overview_names_every_command(capsys):
    main([])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_is_plain_text_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: mtl {name}")
    assert "``" not in said
    assert "--config" in said


def test_the_package_declares_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"mtl": "mtl.cli.main:main"}
    [include] = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert include == "mtl*", "sub-packages of mtl.cli are in the wheel"
    assert all((ROOT / folder / "__init__.py").is_file() for folder in ("mtl/cli", "mtl/cli/commands"))


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_as_a_module(here: Path):
    python = [sys.executable, "-W", "ignore", "-m", "mtl"]
    done = run(*python, "--version")
    assert done.stdout == f"mtl {mtl.__version__}\n"
    done = run(*python, "adapt", "--backbone", "mtl/glyphs", "--data", "nowhere/")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "--data nowhere/: no such file or folder\n"


@pytest.mark.slow
def test_several_processes_train(here: Path):
    pictures(here / "many", 9, 4)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "mtl", "train"]
    done = run(*launch, "--data", "many", "--backbone", "mtl/glyphs", "--out", "run", *LITTLE.split())
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("next       mtl adapt") == 1, "one process speaks"
    assert (here / "run" / "channelwise" / "final" / "config.json").is_file()


def test_export(here: Path, capsys):
    learner = mtl.MetaLearner(b := mtl.load_backbone("mtl/glyphs"), mtl.Static(b.sites, b.width))
    learner.adapt("labelled").save("t.mtl")
    typed("export --task t.mtl out --to timm --examples new")
    said = capsys.readouterr().out
    assert "folder     out" in said
    assert "timm.create_model" in said
    assert json.loads((here / "out" / "config.json").read_text())["mtl"]["class_names"] == [
        f"class {c}" for c in range(3)
    ]
