"""Saved learners: whole or not at all, nothing else touched, damage noticed, and no code from a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import TEXT, build
from tiny import Blobs, backbone

import mtl
from mtl.fewshot.saved_files import CONFIG, WEIGHTS


def learner(bias: float = 0.0, **changes: Any) -> mtl.MetaLearner:
    b = backbone(**changes)
    made = mtl.MetaLearner(b, mtl.Static(b.sites, b.width, 0.1), inner_steps=1)
    for parameter in made.generator.parameters():
        parameter.data.add_(bias)
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    mtl.save_pretrained(learner(), tmp_path / "final")
    return tmp_path / "final"


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """What a person, or an attacker, does to a config."""
    config = json.loads((folder / CONFIG).read_text())
    config.pop("digest", None)
    edit(config)
    (folder / CONFIG).write_text(json.dumps(config))


# --- only own files, and those whole ----------------------------------------------------------------------------------


def test_other_files_stay(saved: Path):
    (saved / "README.md").write_text("mine")
    (saved / "notes").mkdir()
    mtl.save_pretrained(learner(1.0), saved, {"step": 7})
    assert {p.name for p in saved.iterdir()} == {CONFIG, WEIGHTS, "README.md", "notes"}
    assert (saved / "README.md").read_text() == "mine"
    assert weights_of(saved) == weights_of(learner(1.0))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_files_of_other_programs_are_not_replaced(name: str, tmp_path: Path):
    (tmp_path / name).write_text('{"model_type": "bert"}')
    with pytest.raises(FileExistsError, match=r"not of a saved learner.*new folder"):
        mtl.save_pretrained(learner(), tmp_path)
    assert (tmp_path / name).read_text() == '{"model_type": "bert"}'
    assert len(list(tmp_path.iterdir())) == 1


def test_a_learner_may_be_saved_beside_other_files(tmp_path: Path):
    (tmp_path / "photo.png").touch()
    mtl.save_pretrained(learner(), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {CONFIG, WEIGHTS, "photo.png"}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_leaves_the_old_pair_or_the_new_one(moves: int, there: bool, tmp_path: Path, monkeypatch: Any):
    folder, move, done = tmp_path / "final", os.replace, []
    if there:
        mtl.save_pretrained(learner(), folder, {"step": 1})

    def moved(*paths: Any) -> None:
        if len(done) == moves:
            raise KeyboardInterrupt
        move(*paths)
        done.append(paths)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr("mtl.fewshot.saved_files.os.replace", moved)
        mtl.save_pretrained(learner(1.0), folder, {"step": 2})
    assert len(done) == moves
    if moves or there:
        assert weights_of(folder) == weights_of(learner(float(moves > 0)))
    else:
        with pytest.raises(FileNotFoundError, match=r"generator\.safetensors not there"):
            mtl.from_pretrained(folder)
    mtl.save_pretrained(learner(2.0), folder)
    assert weights_of(folder) == weights_of(learner(2.0))
    assert {p.name for p in folder.iterdir()} == {CONFIG, WEIGHTS}, "drafts of a killed save go with the next one"


def weights_of(source: Path | mtl.MetaLearner) -> dict[str, list[float]]:
    made = source if isinstance(source, mtl.MetaLearner) else mtl.from_pretrained(source)
    return {k: v.flatten().tolist() for k, v in made.generator.state_dict().items()}


def test_a_full_disk_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtl.fewshot.saved_files.flush", full)
    with pytest.raises(OSError, match=r"final could not be written: No space left.*make room"):
        mtl.save_pretrained(learner(1.0), saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_files_have_the_mode_that_umask_says(saved: Path):
    old = os.umask(0)
    os.umask(old)
    assert {stat.S_IMODE(p.stat().st_mode) for p in saved.iterdir()} == {0o666 & ~old}


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_flipped_bit_is_noticed_or_changes_nothing(name: str, saved: Path):
    contents, expected = (saved / name).read_bytes(), weights_of(saved)
    generator = torch.Generator().manual_seed(0)
    noticed = []
    for place in torch.randint(len(contents) * 8, (60,), generator=generator).tolist():
        damaged = bytearray(contents)
        damaged[place // 8] ^= 1 << place % 8
        (saved / name).write_bytes(damaged)
        try:
            assert weights_of(saved) == expected
        except ValueError as error:
            noticed.append(str(error))
    assert len(noticed) > 50
    assert all(name in message and "\n" not in message for message in noticed)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", r"config\.json is damaged: no JSON at line 1, column 1"),
        (b'{"mtl": "0.1.0",\n "backbone": {"lo', r"config\.json is damaged: no JSON at line 2, column 15"),
        (b'{"mtl": "\xff"}', r"config\.json is damaged: no UTF-8 at byte 9"),
        (b"[" * 100_000, r"config\.json is damaged: no JSON \(.*recursion"),
        (b"[]", r"config\.json holds a list, expected an object"),
        (b"{}", r"config\.json lacks 'backbone\.load'"),
    ],
)
def test_damaged_json_is_named(contents: bytes, message: str, saved: Path):
    (saved / CONFIG).write_bytes(contents)
    with pytest.raises(ValueError, match=message) as refusal:
        mtl.from_pretrained(saved)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inner", {"inner_steps": "5"}, r"'inner\.inner_steps' = '5': expected a whole number"),
        ("head", {}, r"lacks 'head\.kind'"),
        ("generator", {"kind": "static", "options": {"step_size": "0.1"}}, r"Static.*step_size='0\.1'.*float"),
        ("head", {"kind": "cosine", "options": {"scale": [1]}}, r"Cosine cannot be built with scale=\[1\]"),
        ("head", {"kind": "os.system", "options": {}}, r"unknown head 'os\.system'"),
        ("surprise", 1, r"unknown entries \['surprise'\]"),
    ],
)
def test_missing_and_odd_entries_are_named(path: str, value: Any, message: str, saved: Path):
    change(saved, lambda config: config.update({path: value}))
    with pytest.raises(ValueError, match=message):
        mtl.from_pretrained(saved)


def test_weights_of_another_save_are_noticed(saved: Path, tmp_path: Path):
    mtl.save_pretrained(learner(1.0), tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, saved)
    with pytest.raises(ValueError, match=r"generator\.safetensors is damaged, or does not belong to config\.json"):
        mtl.from_pretrained(saved)


# --- no code from a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "load",
    [
        {"trust_remote_code": True},
        {"code_revision": "main"},
        {"device_map": "auto"},
        {"pretrained_cfg": {"file": "elsewhere/evil.pth"}},
        {"pretrained_cfg_overlay": {"url": "http://evil"}},
        {"pretrained_cfg_overlay": {"custom_load": True}},
        {"norm_layer": "x"},
        {"cache_dir": "/"},
        {"global_pool": "../../x"},
        {"seed": "0"},
        {"sites": ["norm"]},
        {"checkpoint": "config.json"},
    ],
)
def test_a_config_asks_for_known_and_harmless_arguments_only(load: dict[str, Any], saved: Path):
    change(saved, lambda config: config["backbone"]["load"].update(load))
    with pytest.raises(ValueError, match=rf"config\.json asks for {next(iter(load))}=.*backbone=") as refusal:
        mtl.from_pretrained(saved)
    assert "\n" not in str(refusal.value)
    mtl.from_pretrained(saved, backbone())


def test_remote_code_runs_for_an_argument_of_the_caller_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    network, witness = tmp_path / "network", tmp_path / "witness"
    network.mkdir()
    code = f"from pathlib import Path\nPath({str(witness)!r}).touch()\nfrom transformers import BertConfig\n"
    code += "class Mine(BertConfig):\n    model_type = 'mine'\n"
    (network / "mine.py").write_text(code)
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}, **TEXT["bert"]}
    (network / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"Python code of its own, which is not run.*trust_remote_code=True"
    ) as refusal:
        mtl.load_backbone(network, pretrained=False)
    assert "\n" not in str(refusal.value)
    assert not witness.exists()

    b = build("bert", tmp_path)
    mtl.save_pretrained(mtl.MetaLearner(b, mtl.Static(b.sites, b.width), inner_steps=0), tmp_path / "g")
    load = {"name": str(network), "trust_remote_code": True}
    change(tmp_path / "g", lambda c: c["backbone"]["load"].update(load))
    with pytest.raises(ValueError, match=r"trust_remote_code=True, which a file may not ask for.*if you trust"):
        mtl.from_pretrained(tmp_path / "g")
    change(tmp_path / "g", lambda c: c["backbone"]["load"].pop("trust_remote_code"))
    with pytest.raises(ValueError, match="which is not run"):
        mtl.from_pretrained(tmp_path / "g")
    assert not witness.exists()
    with suppress(ValueError):  # there is code for the config alone
        mtl.from_pretrained(tmp_path / "g", trust_remote_code=True)
    assert witness.exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_runs(tmp_path: Path):
    witness = tmp_path / "witness"
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Evil(witness)}))
    torch.save(Evil(witness), tmp_path / "v.pth")
    folder = tmp_path / "timm"
    timm.models.save_for_hf(timm.create_model("test_resnet"), folder, safe_serialization=False)
    torch.save(Evil(witness), folder / "pytorch_model.bin")
    for name, options in (("test_resnet", {"checkpoint": tmp_path / n}) for n in ("w.pth", "v.pth")):
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            mtl.load_backbone(name, **options)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        mtl.load_backbone(folder)
    assert not witness.exists()


# --- where the backbone is --------------------------------------------------------------------------------------------


def test_a_checkpoint_beside_the_generator_moves_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shared, moved = tmp_path / "shared", tmp_path / "moved"
    shared.mkdir()
    torch.save(backbone(seed=3).model.state_dict(), shared / "w.pth")
    torch.save(backbone(seed=3).model.state_dict(), tmp_path / "far.pth")
    near, far = (learner(checkpoint=path) for path in (shared / "w.pth", tmp_path / "far.pth"))
    mtl.save_pretrained(near, shared)
    assert json.loads((shared / CONFIG).read_text())["backbone"]["load"]["checkpoint"] == "w.pth"
    shared.rename(moved)
    assert weights_of(moved) == weights_of(near)
    mtl.save_pretrained(far, tmp_path / "g")
    mtl.from_pretrained(tmp_path / "g")
    (tmp_path / "far.pth").rename(tmp_path / "farther.pth")
    with pytest.raises(FileNotFoundError, match=r"trained on the checkpoint .*far\.pth .*pass checkpoint="):
        mtl.from_pretrained(tmp_path / "g")
    mtl.from_pretrained(tmp_path / "g", checkpoint=tmp_path / "farther.pth")
    monkeypatch.chdir(tmp_path)
    mtl.from_pretrained("g", checkpoint="farther.pth")
    torch.save(backbone(seed=4).model.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights: "):
        mtl.from_pretrained("g", checkpoint="other.pth")


def test_a_network_in_a_folder_that_is_gone_is_not_sought_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("nets/bert").mkdir(parents=True)
    build("bert", Path("nets/bert")).model.save_pretrained("nets/bert")
    b = mtl.load_backbone("nets/bert")
    mtl.save_pretrained(mtl.MetaLearner(b, mtl.Static(b.sites, b.width), inner_steps=0), "g")
    mtl.from_pretrained("g")
    Path("nets").rename("elsewhere")
    with pytest.raises(FileNotFoundError, match=r"folder 'nets/bert', which is not there; pass backbone="):
        mtl.from_pretrained("g")
    mtl.from_pretrained("g", "elsewhere/bert")


def test_a_damaged_universal_generator_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mtl.fewshot.ready.ASSETS", tmp_path)
    (tmp_path / "universal.json").write_text('{"generator": {"kind": "channelwise", "options": {}}')
    (tmp_path / "universal.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"universal\.json is damaged: no JSON at line 1"):
        mtl.load_generator("mtl/universal", backbone())
    parts = '{"generator": {"kind": "channelwise", "options": {}}, "head": {}, "inner": {}}'
    (tmp_path / "universal.json").write_text(parts)
    with pytest.raises(ValueError, match=r"universal\.safetensors is damaged: 3 bytes"):
        mtl.load_generator("mtl/universal", backbone())


@pytest.mark.parametrize(
    "parts",
    [
        {"generator": mtl.Static},
        {"generator": "static"},
        {"head": mtl.Cosine},
        {"head": lambda features: features},
        {"optimizer": mtl.InnerSGD},
        {"estimator": mtl.Windowed},
    ],
    ids=["class", "name", "head class", "function", "optimiser class", "estimator class"],
)
def test_a_part_that_is_none_is_refused_at_once(parts: dict[str, Any]):
    name = next(iter(parts))
    with pytest.raises(ValueError, match=rf"MetaLearner\({name}=.*expected an instance of Abstract.*, such as "):
        mtl.MetaLearner(backbone(), **parts)


class Tied(mtl.Static):
    """The same numbers under two names."""

    def __init__(self, sites: Any, width: int, **options: Any) -> None:
        super().__init__(sites, width, **options)
        self.again = next(self.parameters())


def test_a_generator_with_tied_weights_trains_and_loads(tmp_path: Path):
    b, config = backbone(), mtl.TrainingConfig(steps=1, validation_tasks=1, self_check=False)
    mtl.fewshot.GENERATORS.register("tied", Tied)
    try:
        mtl.train(mtl.MetaLearner(b, Tied(b.sites, b.width), inner_steps=1), Blobs(), Blobs(), config, tmp_path / "run")
        again = mtl.from_pretrained(tmp_path / "run" / "best")
    finally:
        del mtl.fewshot.GENERATORS["tied"]
    assert isinstance(again.generator, Tied)
