"""The states of a run: the last two are kept, and what is damaged or foreign is never taken for one of them."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
import torch

from mtl.fewshot.training.checkpoints import Checkpoints


def state(step: int) -> dict:
    g = torch.Generator().manual_seed(step)
    return {"step": step, "generator": {"a": torch.randn(40, 5, generator=g), "b": torch.randn(7, generator=g)}}


def same(a: dict, b: dict) -> bool:
    return a["step"] == b["step"] and all(torch.equal(a["generator"][k], b["generator"][k]) for k in "ab")


@pytest.fixture
def saved(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4, 6):
        checkpoints.save(state(step))
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(p.name for p in checkpoints.folder.iterdir())


def read(folder: Path) -> dict | None:
    """As another process does, with no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Checkpoints(folder).newest()


def test_the_last_two_are_kept_and_the_newest_is_read(saved, tmp_path):
    assert names(saved) == ["step-00000004.pt", "step-00000006.pt"]
    assert same(read(tmp_path), state(6))
    assert Checkpoints(tmp_path / "nowhere").newest() is None


@pytest.mark.parametrize("left", [0, 1, 50, 1000, -1])
def test_a_truncated_one_is_named_and_the_one_before_is_used(left, saved, tmp_path):
    newest = saved.path(6)
    newest.write_bytes(newest.read_bytes()[:left])
    with pytest.warns(UserWarning, match=r"step-00000006\.pt cannot be read .*goes on from step-00000004\.pt"):
        assert same(Checkpoints(tmp_path).newest(), state(4))
    assert names(saved) == ["step-00000004.pt", "step-00000006.pt"], "nothing is removed"


def test_no_flipped_bit_gets_through(saved, tmp_path):
    newest = saved.path(6)
    whole, choose, noticed = newest.read_bytes(), random.Random(0), 0
    spots = [*range(200), *range(len(whole) - 1000, len(whole)), *choose.sample(range(len(whole)), 400)]
    for spot in spots:
        flipped = bytearray(whole)
        flipped[spot] ^= 1 << choose.randrange(8)
        newest.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = Checkpoints(tmp_path).newest()
        noticed += bool(caught)
        assert same(found, state(4)), f"byte {spot}"
    assert noticed == len(spots)


def test_a_flipped_bit_of_a_tensor_is_noticed(saved, tmp_path):
    newest = saved.path(6)
    contents = bytearray(newest.read_bytes())
    spot = contents.find(state(6)["generator"]["a"].numpy().tobytes())
    contents[spot + 100] ^= 1
    newest.write_bytes(contents)
    assert torch.load(newest, weights_only=True)["step"] == 6, "torch itself reads it"
    with pytest.warns(UserWarning, match="its checksum is wrong"):
        assert same(Checkpoints(tmp_path).newest(), state(4))


def test_damaged_ones_alone_are_refused_and_left(saved, tmp_path):
    for step in (4, 6):
        saved.path(step).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"step-00000006\.pt: .*step-00000004\.pt: .*bring one of these files back"):
        Checkpoints(tmp_path).newest()
    assert [saved.path(step).read_bytes() for step in (4, 6)] == [b"PK", b"PK"]


@pytest.mark.parametrize("other", [{"model": torch.ones(2)}, {"kind": "other", "step": 6}, torch.ones(3), Path("x")])
def test_a_foreign_one_is_refused_by_name(other, saved, tmp_path):
    torch.save(other, saved.path(6))
    before = saved.path(6).read_bytes()
    with pytest.raises(ValueError, match=r"step-00000006\.pt is no state of an mtl training run; move it"):
        Checkpoints(tmp_path).newest()
    assert saved.path(6).read_bytes() == before


def test_files_of_other_names_are_nobodys_business(saved, tmp_path):
    others = ["step-8.pt", "best.pt", "step-00000009.pt.bak"]
    for name in others:
        (saved.folder / name).write_text("mine")
    assert same(read(tmp_path), state(6))
    saved.save(state(8))
    assert names(saved) == sorted([*others, "step-00000006.pt", "step-00000008.pt"])


@pytest.mark.parametrize("then", [(6, 8), (5, 7), (7, 9)])
def test_the_one_that_was_read_stays_until_two_others_are_whole(then, saved, tmp_path):
    """A damaged file never counts as one of the two, whichever steps are saved next."""
    saved.path(6).write_bytes(b"PK")
    again = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="cannot be read"):
        again.newest()
    again.save(state(then[0]))
    assert again.path(4).exists()
    again.save(state(then[1]))
    assert names(again) == [f"step-{step:08d}.pt" for step in then]
    assert same(read(tmp_path), state(then[1]))


def test_a_full_disk_is_named_and_what_is_there_stays(saved, tmp_path, monkeypatch):
    def half(self, contents):
        with self.open("wb") as f:
            f.write(contents[: len(contents) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match=r"step-00000008\.pt could not.*No space left.*takes [\d,]+ bytes") as raised:
        saved.save(state(8))
    assert raised.value.errno == 28
    assert names(saved) == ["step-00000004.pt", "step-00000006.pt"]
    assert same(read(tmp_path), state(6))
