"""The recipes do what their first lines say: run in-process, on little."""

from __future__ import annotations

import csv
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import transformers
import tyro
from PIL import Image
from safetensors.torch import load_file
from tiny import backbone

import mtl
from mtl.data.embedded.glyph_tasks import glyph_backbone_file

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
import adapt
import compare_accuracy
import compare_estimators
import compare_peers
import compare_precision
import compare_speed
import compare_text
import compare_transfer_costs
import draw_cliff
import few_shot_text
import few_shot_vision
import large_backbone
import maml
import maml_results
import meta_transfer
import pretrain_docstrings
import pretrain_scans
import transfer_data


def test_few_shot_vision_on_glyphs(tmp_path):
    config = few_shot_vision.Config(
        out=str(tmp_path / "run"), shots=(2, 1), queries=2, warm_steps=2, steps=1, tasks_per_step=4, validation_tasks=2,
        tuning_episodes=1, test_episodes=8,
    )  # fmt: skip
    found = few_shot_vision.main(config)
    assert [c.setting for c in found] == ["5-way 2-shot", "5-way 1-shot"]
    assert {r.kind for r in found[0].rows} == {"ours", "control", "baseline"}
    written = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert {
        "config.json",
        "accuracy.png",
        "episodes.png",
        "2-shot.csv",
        "SupportConditioned/final/generator.safetensors",
    } <= written
    again = mtl.Comparison.from_json(tmp_path / "run" / "1-shot.json")
    assert again.table() == found[1].table()


def pictures(folder: Path, classes: int, each: int) -> Path:
    for c in range(classes):
        for i in range(each):
            file = folder / f"class {c}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), 25 * c + i).save(file)
    return folder


@pytest.mark.parametrize("inner_steps", [5, 0])
def test_few_shot_vision_on_a_folder_of_images(tmp_path, inner_steps):
    config = few_shot_vision.Config(
        out=str(tmp_path / "run"), data=str(pictures(tmp_path / "data", 10, 4)), ways=2, shots=(2,), queries=2,
        inner_steps=inner_steps, warm_steps=1, steps=1, tasks_per_step=2, validation_tasks=2, tuning_episodes=1,
        test_episodes=2,
    )  # fmt: skip
    [found] = few_shot_vision.main(config)
    assert len(found.families) == 2
    assert (tmp_path / "run" / "split.json").is_file()
    assert found.reference == f"generator, {inner_steps} steps"


LITTLE_ENCODER = {"layers": 1, "width": 32, "vocabulary": 400, "length": 16, "steps": 2, "batch": 8}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A text encoder that has seen next to nothing."""
    config = pretrain_docstrings.Config(
        out=str(tmp_path_factory.mktemp("encoder") / "e"),
        layers=1,
        width=32,
        vocabulary=400,
        length=16,
        steps=2,
        batch=8,
    )
    pretrain_docstrings.main(config)
    return config.out


def text_table(file: Path, classes: int, each: int) -> Path:
    with file.open("w", newline="") as f:
        rows = [(f"text {'of a kind ' * c} {i}", f"class {c}") for c in range(classes) for i in range(each)]
        csv.writer(f).writerows([("note", "kind"), *rows])
    return file


LITTLE_TEXT = {
    "ways": 2, "shots": (2,), "queries": 2, "inner_steps": 1, "warm_steps": 1, "steps": 1, "tasks_per_step": 2,
    "validation_tasks": 2, "tuning_episodes": 1, "test_episodes": 2, "max_length": 16,
}  # fmt: skip


@pytest.mark.parametrize("own", [False, True])
def test_few_shot_text(tmp_path, encoder, own):
    mine = {"text_column": "note", "label_column": "kind"} if own else {}
    data = str(text_table(tmp_path / "t.csv", 10, 5)) if own else None
    config = few_shot_text.Config(out=str(tmp_path / "run"), data=data, backbone=encoder, **mine, **LITTLE_TEXT)
    [found] = few_shot_text.main(config)
    assert {r.kind for r in found.rows} == {"ours", "control", "baseline"}
    assert set(found.families) == {"texts" if own else "module"}
    assert (tmp_path / "run" / "accuracy.png").is_file()
    pages = (tmp_path / "run" / "episodes.md").read_text()
    names = mtl.data.docstring_split(0).test if not own else [f"class {c}" for c in range(10)]
    assert sum(f"| {name} |" in pages for name in names) >= 2


def test_few_shot_text_with_another_head_and_peft(tmp_path, encoder):
    pytest.importorskip("peft")
    config = few_shot_text.Config(out=str(tmp_path), backbone=encoder, head="ridge", peft=True, **LITTLE_TEXT)
    [found] = few_shot_text.main(config)
    assert {"LoRA, 50 steps", "IA3, 50 steps"} < {r.method for r in found.rows}
    assert {"lora_lr", "ia3_lr"} < json.loads((tmp_path / "baselines.json").read_text())["2"].keys()
    learner = mtl.from_pretrained(tmp_path / "SupportConditioned" / "final")
    assert learner.head == mtl.Ridge()


def test_the_small_encoder_is_made_once(encoder):
    before = (Path(encoder) / "model.safetensors").stat().st_mtime_ns
    pretrain_docstrings.main(pretrain_docstrings.Config(out=encoder, **LITTLE_ENCODER))
    assert (Path(encoder) / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="not made by this recipe"):
        pretrain_docstrings.main(pretrain_docstrings.Config(out=str(Path(encoder).parent), **LITTLE_ENCODER))


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


def test_fixed_label_sets(tmp_path, encoder):
    data = str(text_table(tmp_path / "t.csv", 3, 6))
    config = compare_text.Config(
        backbone=encoder, data=data, text_column="note", label_column="kind", max_length=16, shots=(2, 3), queries=2,
        draws=3, out=str(tmp_path / "out"),
    )  # fmt: skip
    rows = compare_text.main(config)
    assert [(r["method"], r["classes"], r["shots"]) for r in rows] == [
        (name, 3, shots) for shots in (2, 3) for name in ("nearest class mean", "logistic regression")
    ]
    assert len(list(csv.DictReader((tmp_path / "out" / "text.csv").open()))) == 4


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


def test_adapt_sees_all_images_alike(tmp_path, generator):
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
    assert [r["label"] for r in adapt.main(config)] == ["down"]


def test_adapt_says_what_is_wrong(tmp_path, generator):
    images = str(pictures(tmp_path / "labelled", 3, 2))
    with pytest.raises(FileNotFoundError, match="not a saved learner"):
        adapt.main(adapt.Config(str(tmp_path / "nowhere"), images))
    with pytest.raises(ValueError, match="two at least"):
        adapt.main(adapt.Config(generator, str(pictures(tmp_path / "one", 1, 2))))
    with pytest.raises(ValueError, match="no image there"):
        adapt.main(adapt.Config(generator, images, str(tmp_path / "new"), predict=str(tmp_path / "nowhere")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError):
        adapt.main(adapt.Config(generator, images, str(tmp_path / "full"), device="cpu"))


def test_comparison_shows_memory_flat_in_the_number_of_steps(tmp_path):
    threads = torch.get_num_threads()
    config = compare_estimators.Config(
        networks=("vit", "bert"), depth=2, last_k=1, inner_steps=(2, 6), ways=2, shots=1, queries=1, out=str(tmp_path)
    )
    rows = compare_estimators.main(config)
    torch.set_num_threads(threads)
    found = {(r["network"], r["K"], r["estimator"]): r for r in rows}
    for network in ("vit", "bert"):
        for name in ("rematerialised", "windowed(5), adaptive", "windowed(5), lazy", "first-order"):
            assert found[network, 6, name]["MiB"] < 1.1 * found[network, 2, name]["MiB"]
        unrolled = [found[network, k, "exact, unrolled"]["MiB"] for k in (2, 6)]
        assert unrolled[1] > 1.5 * unrolled[0], "the measure can see growth"
        exact = found[network, 6, "rematerialised"]
        assert all(exact[f"cosine {t}"] == pytest.approx(1, abs=1e-4) for t in "IDLO")
        assert found[network, 6, "first-order"]["norm L"] == 0
    assert (tmp_path / "estimators.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((tmp_path / "estimators.csv").open()))) == len(rows)


def test_peers_agree_and_one_that_fails_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_peers, "PEERS", {k: v for k, v in compare_peers.PEERS.items() if "plain" in k})
    monkeypatch.setattr(compare_peers, "OURS", {"mtl, rematerialised": None, "missing": None})
    rows = compare_peers.main(compare_peers.Config(depth=1, inner_steps=(2,), repeats=1, out=str(tmp_path)))
    assert [r["library"] for r in rows] == ["plain PyTorch, unrolled", "mtl, rematerialised"]
    assert rows[1]["error"] < 1e-5
    assert "missing                          not measured" in capsys.readouterr().out


def test_accuracy_at_equal_wall_clock(tmp_path):
    threads = torch.get_num_threads()
    config = compare_accuracy.Config(seconds=0.1, inner_steps=1, tasks=2, validation_tasks=4, out=str(tmp_path))
    found = compare_accuracy.main(config)
    torch.set_num_threads(threads)
    assert len(found.rows) == 4
    assert all("outer steps" in r.method for r in found.rows)
    assert (tmp_path / "accuracy.csv").is_file()


def test_every_shortcut_is_measured(tmp_path, capsys):
    threads = torch.get_num_threads()
    config = compare_speed.Config(depth=1, inner_steps=1, tasks=2, repeats=1, out=str(tmp_path))
    found = compare_speed.main(config)
    torch.set_num_threads(threads)
    assert found.keys() == {"prefix", "chunk", "budget", "checkpoint", "bf16"}
    assert all(v > 0 for v in found.values())
    assert "cosine of bf16" in capsys.readouterr().out


def test_precision_is_compared(tmp_path):
    threads = torch.get_num_threads()
    kept = {k: compare_precision.ESTIMATORS[k] for k in ("exact, unrolled", "windowed(5), adaptive", "SAMA")}
    config = compare_precision.Config(networks=("vit",), depth=1, inner_steps=2, out=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_precision, "ESTIMATORS", kept)
        exact, adaptive, sama = compare_precision.main(config)
    torch.set_num_threads(threads)
    assert exact["cosine fp16"] != exact["cosine fp16"], "refused"
    assert min(row[f"cosine {c}"] for row in (adaptive, sama) for c in ("bf16", "fp16", "stored")) > 0.98
    assert (tmp_path / "precision.csv").is_file()


def test_a_meta_step_of_a_large_backbone_is_measured(tmp_path, capsys):
    threads = torch.get_num_threads()
    config = large_backbone.Config(
        backbone="vit_tiny_patch16_224", shots=1, queries=1, ways=2, inner_steps=2, window=2, precision="fp32",
        examples_per_chunk=1, out=str(tmp_path),
    )  # fmt: skip
    found = large_backbone.main(config)
    torch.set_num_threads(threads)
    assert json.loads((tmp_path / "result.json").read_text())["pulls"] == 1
    assert 0 < found["allocated_gib"] < found["peak_gib"]
    assert found["gradient_norm"] > 0


def test_the_cliff_is_drawn(tmp_path):
    threads = torch.get_num_threads()
    config = draw_cliff.Config(depth=1, inner_steps=5, curvatures=(0.02, 0.8), out=str(tmp_path))
    found = draw_cliff.main(config)
    torch.set_num_threads(threads)
    assert all(c.cosine["scale"] > 0.99 for c in (found["exact forward"][0], *found["adaptive"]))
    assert found["exact forward"][1].cosine["example"] < 0.9, "past the cliff"
    assert (tmp_path / "cliff.png").stat().st_size > 10_000


LITTLE_TRANSFER = [
    "--training.steps", "2", "--training.every", "2", "--training.batch", "8", "--inner-steps", "2", "--seeds", "0",
    "--betas", "1", "--inner-lrs", "0.01", "--meta-lrs", "0.1", "--sizes.train", "2", "--sizes.held-out", "1",
    "--sizes.validation", "1", "--sizes.test", "2", "--checkpoint", str(glyph_backbone_file()),
]  # fmt: skip


def little_transfer(out: Path, *more: str) -> list[dict]:
    return meta_transfer.main(tyro.cli(meta_transfer.Config, args=["--out", str(out), *LITTLE_TRANSFER, *more]))


def test_meta_transfer_compares_methods_and_goes_on(tmp_path):
    names = ("all pairs", "attention transfer", "first-order", "windowed, lazy", "rematerialised", "source, new head")
    rows = little_transfer(tmp_path, "--only", *names)
    by = {(r["method"], r["seed"]): r for r in rows}
    assert {m for m, _ in by} == set(names)
    assert by["first-order", 0]["right"] == by["all pairs", 0]["right"], "zero gradients leave every pair alike"
    assert all(w == 1 for stage in by["first-order", 0]["where"] for w in stage)
    assert any(w != 1 for stage in by["rematerialised", 0]["where"] for w in stage)
    table = (tmp_path / "table.md").read_text()
    assert "| 2 | rematerialised |" in table
    assert "nan" not in table
    assert {"accuracy.png", "pairs.png", "runs.csv"} <= {p.name for p in tmp_path.iterdir()}
    files = sorted((tmp_path / "runs").glob("*.json"))
    before = [f.stat().st_mtime_ns for f in files]
    files[0].unlink()
    little_transfer(tmp_path, "--only", *names)
    assert [f.stat().st_mtime_ns for f in files][1:] == before[1:], "what is done is not done again"
    assert files[0].is_file()


def test_a_trained_target_is_a_plain_network(tmp_path):
    [row] = little_transfer(tmp_path, "--only", "last stage", "--target", "test_resnet")
    [file] = (tmp_path / "runs").glob("*seed0*.safetensors")
    network = timm.create_model("test_resnet", in_chans=1, num_classes=60)
    network.load_state_dict(load_file(file))
    data = transfer_data.embedded(transfer_data.PartSizes(2, 1, 1, 2))
    images, labels = data["test"]
    right = (network.eval()(images).argmax(1) == labels).int().tolist()
    assert "".join(map(str, right)) == row["right"]


def test_meta_transfer_on_a_folder_of_images(tmp_path):
    config = ["--data", str(pictures(tmp_path / "data", 3, 7)), "--only", "windowed, adaptive"]
    [row] = little_transfer(tmp_path / "run", *config, "--training.same-batch", "--training.states-on-host")
    assert len(row["right"]) == 6
    with pytest.raises(ValueError, match=r"lower --sizes\.train"):
        little_transfer(tmp_path / "run", *config, "--sizes.train", "5")
    with pytest.raises(ValueError, match=r"no multiples of --training\.window 2"):
        little_transfer(tmp_path / "run", *config, "--inner-steps", "3", "--training.window", "2")
    with pytest.raises(ValueError, match="expected some of"):
        little_transfer(tmp_path / "run", "--only", "nothing")


def test_pretrain_scans_makes_a_source_once(tmp_path):
    config = pretrain_scans.Config(out=str(tmp_path), steps=2)
    file = pretrain_scans.main(config)
    before = file.stat().st_mtime_ns
    assert pretrain_scans.main(config).stat().st_mtime_ns == before
    shipped, found = mtl.load_backbone("mtl/glyphs"), mtl.load_backbone("mtl/glyphs", checkpoint=file)
    assert found.fingerprint() != shipped.fingerprint()


def test_compare_transfer_costs(tmp_path):
    names = ("exact, unrolled", "rematerialised", "windowed, lazy", "one-step")
    settings = compare_transfer_costs.Config(
        only=names, inner_steps=(2, 4), window=2, batch=4, repeats=1, warm_steps=1, out=str(tmp_path)
    )
    rows = {(r["K"], r["estimator"]): r for r in compare_transfer_costs.main(settings)}
    elsewhere = "MiB, states elsewhere"
    for name in ("rematerialised", "windowed, lazy"):
        assert rows[4, name][elsewhere] < 1.1 * rows[2, name][elsewhere]
        assert rows[4, name][elsewhere] < rows[4, name]["MiB"]
    assert rows[4, "exact, unrolled"]["MiB"] > 1.3 * rows[2, "exact, unrolled"]["MiB"]
    assert rows[4, "rematerialised"]["cosine"] > 0.999
    assert rows[4, "one-step"]["norm"] == 0


LITTLE_MAML = {
    "ways": 2, "queries": 2, "inner_steps": 2, "window": 2, "filters": 4, "tasks": 2, "steps": 2, "test_tasks": 3,
    "validation_tasks": 2, "points": 2,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")
def test_maml_with_every_estimator(tmp_path, capsys):
    threads = torch.get_num_threads()
    config = maml.Config(**LITTLE_MAML, momentum=0.5, learned_sizes="layer", out=str(tmp_path))
    with pytest.warns(mtl.metagrad.StructuralZeroWarning, match="Reptile gives exactly zero for .*log_lr"):
        rows = {r["method"]: r for r in maml.main(config)}
    assert len(rows) == 10
    assert rows["exact"]["MiB"] < rows["unrolled, exact"]["MiB"]
    assert rows["unrolled, exact"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert rows["first-order"]["pulls"] == 0
    assert all(rows["exact"][f"difference, {c}"] == 0 for c in maml_results.CONDITIONS)
    assert rows["first-order"]["step, equal time"] >= rows["first-order"]["step, equal steps"]
    assert (tmp_path / "maml.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((tmp_path / "maml.csv").open()))) == len(rows)
    # What is finished is read, not trained again; what is missing is made anew; other settings are refused.
    (tmp_path / "Reptile.json").unlink()
    kept = (tmp_path / "first-order.json").stat().st_mtime_ns
    capsys.readouterr()
    again = {r["method"]: r for r in maml.main(config)}
    assert {k: r for k, r in again.items() if k != "Reptile"} == {k: r for k, r in rows.items() if k != "Reptile"}
    assert (tmp_path / "first-order.json").stat().st_mtime_ns == kept
    assert "first-order: " not in (said := capsys.readouterr().err)
    assert "Reptile: " in said
    with pytest.raises(ValueError, match=r"was made with {'shots': 1}"):
        maml.main(maml.Config(**LITTLE_MAML, momentum=0.5, learned_sizes="layer", shots=2, out=str(tmp_path)))
    torch.set_num_threads(threads)


def test_lazy_windows_train_what_their_control_trains(tmp_path):
    threads = torch.get_num_threads()
    maml.main(maml.Config(**LITTLE_MAML, methods=("lazy", "control"), out=str(tmp_path)))
    torch.set_num_threads(threads)
    names = ("exact", "lazy windows of 2", "control: exact, K/2 steps of 2 times the size")
    exact, lazy, control = (maml_results.load(tmp_path, n)["weights"]["equal steps"] for n in names)
    assert all(torch.allclose(lazy[k], v, atol=1e-4) for k, v in control.items())
    assert not all(torch.allclose(lazy[k], v, atol=1e-4) for k, v in exact.items())


def test_maml_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """In the middle of a method, to the same weights."""
    threads = torch.get_num_threads()
    make = partial(maml.Config, **LITTLE_MAML | {"steps": 6, "points": 3}, methods=("exact",))
    maml.main(make(out=str(tmp_path / "whole")))
    seen, sample = [], maml.Learner.batch

    def stopping(self, part, first, number):
        seen.append((part, first))
        if (part, first) == ("train", 10):
            raise KeyboardInterrupt
        return sample(self, part, first, number)

    with monkeypatch.context() as patch:
        patch.setattr(maml.Learner, "batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            maml.main(make(out=str(tmp_path / "halves")))
        seen.clear()
        patch.setattr(maml.Learner, "batch", lambda *a: (seen.append(a[1:3]), sample(*a))[1])
        maml.main(make(out=str(tmp_path / "halves")))
    torch.set_num_threads(threads)
    assert seen[0] == ("train", 8), "from the fourth step on"
    whole, halves = (maml_results.load(tmp_path / out, "exact") for out in ("whole", "halves"))
    assert all(torch.equal(v, halves["weights"]["equal steps"][k]) for k, v in whole["weights"]["equal steps"].items())
    assert [c[1:] for c in whole["curve"]] == [list(c[1:]) for c in halves["curve"]]
    assert not list((tmp_path / "halves").glob("*.pt"))


def test_maml_on_a_folder_of_images(tmp_path):
    threads = torch.get_num_threads()
    data = str(pictures(tmp_path / "data", 10, 4))
    rows = maml.main(maml.Config(**LITTLE_MAML, data=data, methods=("first-order",), out=str(tmp_path / "run")))
    torch.set_num_threads(threads)
    assert [r["method"] for r in rows] == ["exact", "first-order"]
    assert (tmp_path / "run" / "split.json").is_file()
