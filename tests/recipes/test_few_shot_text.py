"""few_shot_text.py on the embedded docstrings and on a table, and the small encoder that it pretrains."""

from __future__ import annotations

import json
from pathlib import Path

import few_shot_text
import pytest
from assets import pretrain_docstrings
from small_data import LITTLE_ENCODER, text_table

import mtl
from mtl.cli.training.questions import Questions

LITTLE_TEXT = {
    "ways": 2, "shots": (2,), "queries": 2, "inner_steps": 1, "warm_steps": 1, "steps": 1, "tasks_per_step": 2,
    "validation_tasks": 2, "tuning_episodes": 1, "test_episodes": 2, "max_length": 16,
}  # fmt: skip


@pytest.mark.parametrize("own", [False, True])
def test_few_shot_text(tmp_path, encoder, own):
    mine = {"text_column": "note", "questions": Questions(label_columns=("kind",))} if own else {}
    data = (str(text_table(tmp_path / "t.csv", 10, 5)),) if own else ()
    config = few_shot_text.Config(out=str(tmp_path / "run"), data=data, backbone=encoder, **mine, **LITTLE_TEXT)
    [found] = few_shot_text.main(config)
    assert {r.kind for r in found.rows} == {"ours", "control", "baseline"}
    assert set(found.families) == {"t.kind" if own else "module"}
    assert (tmp_path / "run" / "accuracy.png").is_file()
    pages = (tmp_path / "run" / "episodes.md").read_text()
    names = mtl.data.docstring_split(0).test if not own else [f"class {c}" for c in range(10)]
    assert sum(f"| {name} |" in pages for name in names) >= 2


def test_few_shot_text_with_another_head_and_peft(tmp_path, encoder):
    pytest.importorskip("peft")
    config = few_shot_text.Config(
        out=str(tmp_path), backbone=encoder, head="ridge", baselines=("ncm", "lora", "ia3"), **LITTLE_TEXT
    )
    [found] = few_shot_text.main(config)
    rows = [r.method for r in found.rows if r.kind == "baseline"]
    assert rows == ["nearest class mean", "LoRA, 50 steps", "IA3, 50 steps"]
    assert {"lora_lr", "ia3_lr"} == json.loads((tmp_path / "baselines.json").read_text())["2"].keys()
    learner = mtl.from_pretrained(tmp_path / "dense" / "final")
    assert learner.head == mtl.Ridge()


def test_the_small_encoder_is_made_once(encoder):
    before = (Path(encoder) / "model.safetensors").stat().st_mtime_ns
    pretrain_docstrings.main(pretrain_docstrings.Config(out=encoder, **LITTLE_ENCODER))
    assert (Path(encoder) / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="already there and would be replaced"):
        pretrain_docstrings.main(pretrain_docstrings.Config(out=str(Path(encoder).parent), **LITTLE_ENCODER))


def test_word_pieces_are_the_same_every_time():
    """Tokenizers numbers pieces as its hash tables give them, which differ between two calls too."""
    texts = [f"{a}{b}{c} {c}{a}" for a in "aqzm" for b in "elio" for c in "snrt"]
    config = pretrain_docstrings.Config(vocabulary=60, length=8)
    found = [pretrain_docstrings.make_tokenizer(texts, config) for _ in range(5)]
    first = found[0].get_vocab()
    assert all(t.get_vocab() == first for t in found)
    assert [first[t] for t in ("[PAD]", "[UNK]")] == [0, 1]
