"""meta_transfer.py compares ways to transfer, each run done once."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import meta_transfer
import numpy as np
import pytest
import timm
import torch
from assets import pretrain_scans
from helpers import transfer_data, transfer_report
from helpers.transfer_runs import SEARCHED, candidates
from PIL import Image
from safetensors.torch import load_file
from small_data import pictures

import mtl
from mtl.cli.answers import parse
from mtl.networks.backbones.timm_networks import EMBEDDED_WEIGHTS
from mtl.transfer import Source, SourceMaps

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
    sizes = transfer_data.PartSizes(train=2, held_out=1, validation=1, test=2)
    images, labels = transfer_data.embedded(sizes, Source(mtl.load_backbone("mtl/glyphs"))).part("test")
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


def test_maps_of_images_of_your_own_are_those_of_their_views(tmp_path):
    sizes = transfer_data.PartSizes(train=2, held_out=1, pool=1, validation=1, test=2, classes=2)
    rng = np.random.default_rng(0)
    for name, i in product("abc", range(8)):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 40)).save(tmp_path / "data" / name / f"{i}.png")
    images = transfer_data.opened(str(tmp_path / "data"), sizes)
    source = Source(mtl.load_backbone("mtl/glyphs"), most=2)
    seen = transfer_data.Seen(img_size=16, views=3, sides=(1, 1))
    data = transfer_data.own(images, sizes, source, seen, tmp_path)
    assert {p: len(r) for p, r in data.rows.items()} == {
        "train": 12, "held_out": 6, "pool": 6, "validation": 2, "test": 4,
    }  # fmt: skip
    assert data.images.shape == (30, 3, 16, 16)
    assert data.maps.sizes == ((1, 1), (1, 1))
    expected = SourceMaps.of(source, [data.for_source(torch.arange(24))], (1, 1), torch.float32).standardised()
    batch = data.minibatch(("train", "pool"), 18, 0)
    rows = torch.cat([(data.images == x).flatten(1).all(1).nonzero()[0] for x in batch.images])
    assert sorted(rows.tolist()) == [*range(12), *range(18, 24)]
    for found, stage in zip(batch.maps, expected[rows], strict=True):
        torch.testing.assert_close(found, stage, atol=1e-2, rtol=1e-2)
    views = data.for_source(torch.tensor([0, 4, 8]))
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    [file] = tmp_path.glob("maps-*.safetensors")
    before = file.stat().st_mtime_ns
    assert torch.equal(transfer_data.own(images, sizes, source, seen, tmp_path).maps.stages[0], data.maps.stages[0])
    assert file.stat().st_mtime_ns == before, "maps are computed once"


def test_a_pool_without_labels_shares_of_pairs_and_a_search(tmp_path):
    own = str(pictures(tmp_path / "data", 3, 8))
    config = ["--data", own, "--source", "mtl/glyphs", "--img-size", "16", "--views", "2", "--sides", "4", "2", "1",
              "--sizes.pool", "1", "--training.fixed-total", "--training.learn", "pairs", "--training.hold", "2",
              "--training.optimizer", "adamw", "--training.inner-optimizer", "adam", "--search", "3"]  # fmt: skip
    names = ("rematerialised", "first-order", "all pairs", *SEARCHED, "from scratch", "source, new head")
    rows = {r["method"]: r for r in little_transfer(tmp_path / "run", *config, "--only", *names)}
    where = torch.tensor(rows["rematerialised"]["where"])
    assert where.mean() == pytest.approx(1, abs=1e-5)
    assert where.std() > 1e-3
    assert rows["first-order"]["right"] == rows["all pairs"]["right"], "zero gradients leave every pair alike"
    tried = [json.loads(f.read_text()) for f in (tmp_path / "run" / "runs").glob("searched-*-seed1000-*.json")]
    for name, by in SEARCHED.items():
        assert sum(rows[name]["pairs"]) == pytest.approx(9, abs=1e-3)
        assert rows[name]["pairs"] in [t["pairs"] for t in tried if t[by] == max(t[by] for t in tried)]


def test_a_difference_is_paired_by_seed_and_has_the_wider_interval():
    rows = lambda *seeds: [{"right": r, "accuracy": r.count("1") / len(r)} for r in seeds]  # noqa: E731
    alike = transfer_report.difference(rows("1100", "1110"), rows("1000", "1100"))
    assert alike == "+25.0 ± 28.3", "25 points on both seeds, by two of four images"
    apart = transfer_report.difference(rows("1111", "1000"), rows("1100", "1100"))
    assert apart.startswith("+12.5 ± 73.5"), "+50 and -25 points: 37.5 * 1.96"


def test_candidates_are_shares_of_one_total():
    found = candidates(2, 12, 0)
    assert len(found) == len(set(found)) == 12
    assert found[0] == (2.0, 2.0, 0.0, 0.0), "one source stage"
    assert all(sum(w) == pytest.approx(4, abs=1e-4) and min(w) >= 0 for w in found)


def test_pretrain_scans_makes_a_source_once(tmp_path):
    config = pretrain_scans.Config(out=str(tmp_path), steps=2)
    file = pretrain_scans.main(config)
    before = file.stat().st_mtime_ns
    assert pretrain_scans.main(config).stat().st_mtime_ns == before
    shipped, found = mtl.load_backbone("mtl/glyphs"), mtl.load_backbone("mtl/glyphs", checkpoint=file)
    assert found.fingerprint() != shipped.fingerprint()
