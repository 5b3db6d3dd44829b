"""Learners, tasks and runs go to the hub and come back the same, and nothing else of this machine goes with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import few_shot_vision
import pytest
import torch
import yaml
from hub_stand_in import TOKEN, Hub, Repository, hub_stand_in
from huggingface_hub import constants
from networks import load
from PIL import Image
from test_tracking import TINY

import mtl
from mtl.cli.config_files import words_of
from mtl.cli.main import main as command
from mtl.fewshot import hub_files
from mtl.fewshot.saved_files import CONFIG, WEIGHTS

LOADED: dict[str, Any] = {"name": "mtl/glyphs", "sites": "none", "levels": "all"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_stand_in(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture(scope="module")
def glyphs() -> mtl.Backbone:
    return mtl.load_backbone(**LOADED)


def learner(backbone: mtl.Backbone, seed: int = 0, **options: Any) -> mtl.MetaLearner:
    torch.manual_seed(seed)
    generator = mtl.fewshot.make_generator("channelwise", backbone, per_channel=False, **options)
    for parameter in generator.parameters():  # they begin as no change
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return mtl.MetaLearner(backbone, generator)


def same(one: mtl.MetaLearner, other: mtl.MetaLearner) -> bool:
    a, b = one.generator.state_dict(), other.generator.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def front_of(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_learner_goes_there_and_back(hub: Hub, glyphs: mtl.Backbone, monkeypatch: pytest.MonkeyPatch):
    first = learner(glyphs)
    pushed = mtl.push_to_hub(first, "ada/leaves", token=TOKEN)
    assert set(hub.files("ada/leaves")) == {CONFIG, WEIGHTS, "README.md"}
    assert pushed == f"ada/leaves@{hub.repositories['ada/leaves'].commits[-1][0]}"
    found = mtl.from_pretrained("ada/leaves")  # the network too, as the config says
    assert same(found, first)
    assert found.generator.source == pushed
    second = learner(glyphs, 1)
    assert mtl.push_to_hub(second, "ada/leaves", token=TOKEN) != pushed
    assert same(mtl.from_pretrained("ada/leaves", glyphs), second)
    assert same(mtl.from_pretrained(pushed, glyphs), first)
    assert same(mtl.from_pretrained("ada/leaves", glyphs, revision=pushed.partition("@")[2]), first)
    assert same(mtl.load_generator("ada/leaves", glyphs), mtl.load_generator(pushed.partition("@")[0], glyphs))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert same(mtl.from_pretrained("ada/leaves", glyphs), second)
    assert not hub.asked


def test_a_task_goes_there_and_back(hub: Hub, glyphs: mtl.Backbone):
    episode = mtl.GlyphTasks("test", ways=3, shots=2, queries=4, seed=0).sample(0)
    adapted = learner(glyphs).adapt(episode.support)
    task, queries = adapted.task(), episode.query.inputs.map(lambda v: v[0])
    pushed = mtl.push_to_hub(task, "ada/letters", token=TOKEN)
    assert set(hub.files("ada/letters")) == {"task.mtl", "README.md"}
    found = mtl.load_task("ada/letters", glyphs)
    assert torch.equal(found.logits(queries), task.logits(queries))
    assert found.facts["source"] == pushed.replace("@", "/task.mtl@")
    card = hub.files("ada/letters")["README.md"]
    assert b"mtl.load_task(" in card
    again = mtl.push_to_hub(adapted, "ada/letters/set/other.mtl", token=TOKEN)
    assert hub.files("ada/letters")["README.md"] == card, "the card that was there"
    assert torch.equal(mtl.load_task(again.partition("@")[0], glyphs).logits(queries), task.logits(queries))
    assert mtl.load_task(again, glyphs).facts["source"] == again


def test_what_was_adapted_says_which_generator_of_the_hub_it_was(hub: Hub, glyphs: mtl.Backbone):
    pushed = mtl.push_to_hub(learner(glyphs), "ada/leaves", token=TOKEN)
    episode = mtl.GlyphTasks("test", ways=3, shots=2, queries=1, seed=0).sample(0)
    task = mtl.from_pretrained("ada/leaves", glyphs).adapt(episode.support).task()
    assert task.facts["source_of_generator"] == pushed


def test_a_whole_run(hub: Hub, tmp_path: Path):
    data = tmp_path / "secret place"
    config = few_shot_vision.Config(out=str(data / "run"), cache_dir=None, **TINY)
    [table] = few_shot_vision.main(config)
    mtl.push_to_hub(config.out, "ada/glyph-run", token=TOKEN, license="apache-2.0")
    files = hub.files("ada/glyph-run")
    assert set(files) == {CONFIG, WEIGHTS, "README.md", "1-shot.csv", "accuracy.png", "training.json"}
    assert not any(b"secret place" in contents for contents in files.values())
    card = files["README.md"].decode()
    front = front_of(card)
    assert front["library_name"] == "mtl"
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "image-classification"
    [result] = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(table.row(table.reference).accuracy.mean(), 4)
    assert table.table(markdown=True).strip() in card
    assert "static modulation" in card.split("## Network")[0].rsplit("- ", 1)[1], "the control is spoken of"
    assert "mtl train --config training.json" in card
    assert f"torch {torch.__version__}" in card
    (tmp_path / "training.json").write_bytes(files["training.json"])
    assert "--warm-steps=2" in words_of(tmp_path / "training.json", few_shot_vision.Config), "it can be given back"
    assert same(mtl.from_pretrained("ada/glyph-run"), mtl.from_pretrained(Path(config.out) / "channelwise" / "final"))


def test_the_code_on_the_card_runs(hub: Hub, glyphs: mtl.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mtl.push_to_hub(learner(glyphs), "ada/leaves", token=TOKEN)
    for i, place in enumerate(["labelled/dark/0", "labelled/dark/1", "labelled/light/0", "labelled/light/1", "new/0"]):
        (file := tmp_path / f"{place}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 60 * i).save(file)
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", hub.files("ada/leaves")["README.md"].decode(), re.DOTALL)
    assert found
    names: dict[str, Any] = {}
    exec(found[1], names)
    assert names["adapted"].predict("new/") == ["light"]


def test_the_command_pushes_and_what_it_prints_loads(
    hub: Hub, glyphs: mtl.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    mtl.save_pretrained(first := learner(glyphs), tmp_path / "it")
    command(["push", str(tmp_path / "it"), "ada/leaves", "--license", "mit", "--card"])
    assert front_of(capsys.readouterr().out)["license"] == "mit"
    assert not hub.repositories
    command(["push", str(tmp_path / "it"), "ada/leaves", "--private"])
    found = re.search(r'mtl.from_pretrained\("(.+)"\)', capsys.readouterr().out)
    assert found
    assert hub.repositories["ada/leaves"].private
    assert same(mtl.from_pretrained(found[1], glyphs), first)
    with pytest.raises(SystemExit):
        command(["push", str(tmp_path / "nothing"), "ada/leaves"])
    assert capsys.readouterr().err == f"{tmp_path / 'nothing'}: no such file or folder\n"


# --- nothing of this machine ------------------------------------------------------------------------------------------


def test_networks_in_folders_are_named_and_not_uploaded(hub: Hub, tmp_path: Path):
    (tmp_path / "secret" / "bert").mkdir(parents=True)
    backbone = load("bert", tmp_path / "secret" / "bert")
    mtl.push_to_hub(mtl.MetaLearner(backbone), "ada/texts", token=TOKEN)
    assert not any(b"secret" in contents for contents in hub.files("ada/texts").values())
    with pytest.raises(FileNotFoundError, match=r"network in the folder 'bert', which is not there; pass backbone="):
        mtl.from_pretrained("ada/texts")
    assert mtl.from_pretrained("ada/texts", backbone).backbone is backbone
    assert mtl.from_pretrained("ada/texts", tmp_path / "secret" / "bert").backbone.width == backbone.width
    assert 'backbone="path/to/network"' in hub.files("ada/texts")["README.md"].decode()


def test_a_folder_of_the_same_name_wins(
    hub: Hub, glyphs: mtl.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mtl.push_to_hub(learner(glyphs), "ada/leaves", token=TOKEN)
    monkeypatch.chdir(tmp_path)
    mtl.save_pretrained(here := learner(glyphs, 1), "ada/leaves")
    hub.asked.clear()
    assert same(mtl.from_pretrained("ada/leaves", glyphs), here)
    assert not hub.asked
    with pytest.raises(ValueError, match=r"revision='v1' is for what is on the hub, and 'ada/leaves' is a path"):
        mtl.from_pretrained("ada/leaves", revision="v1")


# --- what a repository cannot do --------------------------------------------------------------------------------------


def test_only_the_named_files_are_fetched(hub: Hub, glyphs: mtl.Backbone, tmp_path: Path):
    mtl.push_to_hub(learner(glyphs), "ada/leaves", token=TOKEN)
    hub.repositories["ada/leaves"].commit("more", {"modeling.py": b"raise SystemExit", "../../evil.py": b"evil"})
    mtl.from_pretrained("ada/leaves", glyphs)
    assert {p.name for p in (tmp_path / "cache").rglob("*") if p.is_symlink()} == {CONFIG, WEIGHTS}


def test_a_repository_cannot_ask_for_code(hub: Hub, glyphs: mtl.Backbone, tmp_path: Path):
    mtl.save_pretrained(learner(glyphs), tmp_path / "it")
    config = json.loads((tmp_path / "it" / CONFIG).read_text())
    config["backbone"]["load"]["trust_remote_code"] = True
    del config["digest"]
    files = {CONFIG: json.dumps(config).encode(), WEIGHTS: (tmp_path / "it" / WEIGHTS).read_bytes()}
    hub.repositories["eve/leaves"] = Repository()
    hub.repositories["eve/leaves"].commit("evil", files)
    with pytest.raises(ValueError, match="asks for trust_remote_code=True, which a file may not ask for"):
        mtl.from_pretrained("eve/leaves")
    del config["backbone"]["load"]["trust_remote_code"], config["sha256"]
    hub.repositories["eve/leaves"].commit("without digests", {CONFIG: json.dumps(config).encode()})
    with pytest.raises(ValueError, match=r"eve/leaves has a config.json without digests"):
        mtl.from_pretrained("eve/leaves", glyphs)


def test_files_of_two_commits_are_never_mixed(hub: Hub, glyphs: mtl.Backbone, monkeypatch: pytest.MonkeyPatch):
    """A push between the two downloads."""
    mtl.push_to_hub(first := learner(glyphs), "ada/leaves", token=TOKEN)
    fetch, pushed = hub_files._fetch, []

    def interrupted(place: Any, name: str, token: str | None) -> Path:
        path = fetch(place, name, token)
        if not pushed:
            pushed.append(mtl.push_to_hub(learner(glyphs, 1), "ada/leaves", token=TOKEN))
        return path

    monkeypatch.setattr(hub_files, "_fetch", interrupted)
    assert same(mtl.from_pretrained("ada/leaves", glyphs), first)


def test_large_files_are_refused_before_they_come(hub: Hub, glyphs: mtl.Backbone):
    mtl.push_to_hub(learner(glyphs), "ada/leaves", token=TOKEN)
    hub.sizes[WEIGHTS] = hub_files.LARGEST[".safetensors"] + 1
    with pytest.raises(ValueError, match=r"generator.safetensors of ada/leaves has 4,294,967,297 bytes, expected"):
        mtl.from_pretrained("ada/leaves", glyphs)
    assert not any(asked.startswith("GET") and WEIGHTS in asked for asked in hub.asked)


@pytest.mark.parametrize("name", ["ada/leaves/../../x.mtl", "ada/leaves//x.mtl", "ada/leaves/./x.mtl"])
def test_no_name_leads_out_of_a_repository(name: str):
    with pytest.raises(ValueError, match="leads out of its repository"):
        mtl.load_task(name)


# --- one line when it cannot be had -----------------------------------------------------------------------------------


def test_what_is_not_there_is_said_in_one_line(hub: Hub, glyphs: mtl.Backbone):
    mtl.push_to_hub(learner(glyphs), "ada/leaves", token=TOKEN, private=True)
    assert same(mtl.from_pretrained("ada/leaves", glyphs, token=TOKEN), learner(glyphs))
    for call, message in (
        (
            lambda: mtl.from_pretrained("ada/nothing"),
            rf"ada/nothing is neither a folder here nor a repo.* {hub.endpoint}",
        ),
        (lambda: mtl.load_generator("ada/leaves@v9", glyphs, token=TOKEN), "ada/leaves has no revision 'v9'"),
        (lambda: mtl.load_task("ada/leaves", token=TOKEN), r"ada/leaves on the hub is not an adapted task: .*task.mtl"),
        (lambda: mtl.load_task("tasks/returns.mtl"), r"tasks/returns.mtl"),
    ):
        with pytest.raises(FileNotFoundError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_cache_is_asked_where_the_hub_may_not(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"ada/leaves is no folder here, and HF_HUB_OFFLINE is set, so only the"
    ):
        mtl.from_pretrained("ada/leaves")
    with pytest.raises(OSError, match="ada/leaves was not pushed: HF_HUB_OFFLINE is set"):
        mtl.push_to_hub(mtl.MetaLearner(mtl.load_backbone(**LOADED)), "ada/leaves", token=TOKEN)
    assert not hub.asked


def test_who_may_not_write_is_told(hub: Hub, glyphs: mtl.Backbone, tmp_path: Path):
    with pytest.raises(OSError, match=r"ada/leaves was not pushed: .* answers 401; pass a token= that may write there"):
        mtl.push_to_hub(learner(glyphs), "ada/leaves", token="hf_of_eve")
    with pytest.raises(ValueError, match="'leaves' cannot be the name of a repository; expected 'user/name'"):
        mtl.push_to_hub(learner(glyphs), "leaves", token=TOKEN)
    with pytest.raises(ValueError, match="names the file of a task, and this is a generator"):
        mtl.push_to_hub(learner(glyphs), "ada/leaves/x.mtl", token=TOKEN)
    with pytest.raises(FileNotFoundError, match="is neither a finished run, a saved learner nor a file of an adapted"):
        mtl.push_to_hub(tmp_path, "ada/leaves", token=TOKEN)


# --- the card ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("hf/sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("mtl/minilm", None),
        ("resnet18", "timm/resnet18.a1_in1k"),
    ],
)
def test_the_network_is_named_as_the_hub_does(name: str, expected: str | None):
    from mtl.fewshot.sharing.model_card import hub_name

    assert hub_name({"load": {"name": name}}) == expected
    assert hub_name({"load": {"name": name, "checkpoint": "own.pth"}}) is None
    assert hub_name({"load": {"name": name, "pretrained": False}}) is None
