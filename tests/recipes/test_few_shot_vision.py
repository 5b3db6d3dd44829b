"""few_shot_vision.py on the embedded glyphs and on a folder of images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import few_shot_vision
import pytest
import stress_recipe_kills
from small_data import pictures

import mtl
from mtl.cli.answers import parse
from mtl.cli.training.kept_tasks import KeptTasks
from mtl.tools.lock import FolderInUse, folder_lock


def test_few_shot_vision_on_glyphs(tmp_path):
    config = few_shot_vision.Config(
        out=str(tmp_path / "run"), shots=(2, 1), queries=2, warm_steps=2, steps=1, tasks_per_step=4, validation_tasks=2,
        tuning_episodes=1, test_episodes=8, kept_episodes=4, tuned_inside=True,
    )  # fmt: skip
    found = few_shot_vision.main(config)
    assert [c.setting for c in found] == ["5-way 2-shot", "5-way 1-shot"]
    assert {r.kind for r in found[0].rows} == {"ours", "control", "baseline"}
    assert [r.method for r in found[0].rows][:2] == ["generator, 0 steps", "cross-validated, 0 steps"]
    assert found[0].rows[-1].method == "scale/shift, 50 steps, inside the network"
    assert found[0].rows[-1].accuracy.shape == (8,)
    written = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert {
        "config.json",
        "accuracy.png",
        "episodes.png",
        "reliability, 2-shot.png",
        "report.html",
        "2-shot.csv",
        "channelwise/final/generator.safetensors",
    } <= written
    again = mtl.Comparison.from_json(tmp_path / "run" / "1-shot.json")
    assert again.table() == found[1].table()
    same_command_returns_at_once(config)
    other_settings_are_refused(config)


def same_command_returns_at_once(config: few_shot_vision.Config) -> None:
    before, seen = {p: p.stat().st_mtime_ns for p in Path(config.out).rglob("*")}, []
    with pytest.MonkeyPatch.context() as patch:
        for source in (mtl.GlyphTasks, KeptTasks):
            patch.setattr(source, "sample", lambda *args: seen.append(args))
        found = few_shot_vision.main(config)
    assert not seen, "no episode"
    assert {p: p.stat().st_mtime_ns for p in Path(config.out).rglob("*")} == before
    assert [c.setting for c in found] == ["5-way 2-shot", "5-way 1-shot"]


def other_settings_are_refused(config: few_shot_vision.Config) -> None:
    before = {p: p.read_bytes() for p in Path(config.out).rglob("*") if p.is_file()}
    for change in ({"seed": 1}, {"queries": 3}, {"shots": (2,)}, {"head": "ridge"}, {"levels": "last"}):
        with pytest.raises(ValueError, match="holds a run with other settings"):
            few_shot_vision.main(replace(config, **change))
    with lock_of_another_process(Path(config.out)), pytest.raises(FolderInUse):
        few_shot_vision.main(replace(config, test_episodes=4))
    after = {p: p.read_bytes() for p in Path(config.out).rglob("*") if p.is_file() and "lock" not in p.name}
    assert after == {p: c for p, c in before.items() if "lock" not in p.name}


@contextmanager
def lock_of_another_process(folder: Path) -> Iterator[None]:
    """Hold a folder elsewhere."""
    with futures.ThreadPoolExecutor(1) as other:  # a thread of its own is as good as a process
        held = folder_lock(folder)
        other.submit(held.__enter__).result()
        try:
            yield
        finally:
            other.submit(held.__exit__, None, None, None).result()


@pytest.mark.slow
def test_two_kills_of_the_whole_recipe(tmp_path):
    assert stress_recipe_kills.main(tmp_path, kills=2, seed=1)["kills"] == 2


@pytest.mark.parametrize(
    ("inner_steps", "modulated"),
    [(0, {}), (2, {"sites": "norm"}), (5, {"sites": "norm", "levels": "last", "generator": "dense", "head": "cosine"})],
)
def test_few_shot_vision_on_a_folder_of_images(tmp_path, inner_steps, modulated):
    config = few_shot_vision.Config(
        out=str(tmp_path / "run"), data=(str(pictures(tmp_path / "data", 10, 4)),), backbone="mtl/glyphs", ways=2,
        shots=(2,), queries=2, inner_steps=inner_steps, warm_steps=1, steps=1, tasks_per_step=2, validation_tasks=2,
        tuning_episodes=1, test_episodes=2, **modulated,
    )  # fmt: skip
    [found] = few_shot_vision.main(config)
    assert len(found.families) == 2
    assert (tmp_path / "run" / "split.json").is_file()
    assert found.reference == f"generator, {inner_steps} steps"


def test_few_shot_vision_on_two_data_sets_with_several_columns(tmp_path, capsys):
    data = [pictures(tmp_path / name, 10, 8) for name in ("toys", "tools")]
    for folder in data:
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
        rows = [f"{file},shade {i % 4},track {i % 3}" for i, file in enumerate(files)]
        (folder / "attributes.csv").write_text("\n".join(["file,shade,track", *rows]))
    line = "--ways 2 --shots 2 --queries 2 --inner-steps 0 --warm-steps 2 --tasks-per-step 2 --validation-tasks 4"
    line += " --tuning-episodes 1 --test-episodes 5 --label-columns class shade --group-column toys:track"
    line += " --hold-out-families tools.shade --baselines ncm --backbone mtl/glyphs --data"
    config = parse(few_shot_vision.Config, [*line.split(), *map(str, data), "--out", str(tmp_path / "run")])
    [found] = few_shot_vision.main(config)
    names = ("toys.class", "toys.shade", "tools.class", "tools.shade")
    assert found.families == tuple(name for name in names for _ in range(2))
    assert found.unseen == ("tools.shade",)
    printed = capsys.readouterr().out
    assert "tools.shade: 80 images, 4 classes, test only: test" in printed
    assert "2-way 2-shot, unseen families, 2 episodes" in printed
    [again] = few_shot_vision.main(config)  # the stored split fits
    assert [r.accuracy.tolist() for r in again.rows] == [r.accuracy.tolist() for r in found.rows]
