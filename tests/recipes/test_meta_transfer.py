"""meta_transfer.py compares ways to transfer, each run done once."""

from __future__ import annotations

from pathlib import Path

import meta_transfer
import pytest
import timm
from assets import pretrain_scans
from helpers import transfer_data
from safetensors.torch import load_file
from small_data import pictures

import mtl
from mtl.cli.answers import parse
from mtl.networks.backbones.timm_networks import EMBEDDED_WEIGHTS

LITTLE_TRANSFER = [
    "--training.steps", "2", "--training.every", "2", "--training.batch", "8", "--inner-steps", "2", "--seeds", "0",
    "--betas", "1", "--inner-lrs", "0.01", "--meta-lrs", "0.1", "--sizes.train", "2", "--sizes.held-out", "1",
    "--sizes.validation", "1", "--sizes.test", "2", "--checkpoint", str(EMBEDDED_WEIGHTS),
]  # fmt: skip


def little_transfer(out: Path, *more: str) -> list[dict]:
    return meta_transfer.main(parse(meta_transfer.Config, ["--out", str(out), *LITTLE_TRANSFER, *more]))


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
    own = str(pictures(tmp_path / "data", 3, 7))
    config = ["--data", own, "--source", "mtl/glyphs", "--only", "windowed, adaptive"]
    [row] = little_transfer(tmp_path / "run", *config, "--training.same-batch", "--training.states-on-host")
    assert len(row["right"]) == 6
    with pytest.raises(ValueError, match=r"lower --sizes\.train"):
        little_transfer(tmp_path / "run", *config, "--sizes.train", "5")
    with pytest.raises(ValueError, match=r"--inner-steps 3: expected multiples of --training\.window 2"):
        little_transfer(tmp_path / "run", *config, "--inner-steps", "3", "--training.window", "2")
    with pytest.raises(ValueError, match="--only nothing: expected one of"):
        little_transfer(tmp_path / "run", "--only", "nothing")


def test_pretrain_scans_makes_a_source_once(tmp_path):
    config = pretrain_scans.Config(out=str(tmp_path), steps=2)
    file = pretrain_scans.main(config)
    before = file.stat().st_mtime_ns
    assert pretrain_scans.main(config).stat().st_mtime_ns == before
    shipped, found = mtl.load_backbone("mtl/glyphs"), mtl.load_backbone("mtl/glyphs", checkpoint=file)
    assert found.fingerprint() != shipped.fingerprint()
