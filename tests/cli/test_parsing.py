"""Options in groups and from files are those of the flat dataclass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import tyro
import yaml

from mtl.cli.commands import compare, train
from mtl.cli.groups import comments_of
from mtl.cli.options import Checked, Count
from mtl.cli.parsing import parse
from mtl.metagrad import EstimatorOptions


@dataclass(frozen=True)
class Inner:
    """How files are read."""

    class_level: int | None = None  # depth


@dataclass(frozen=True)
class Options(Checked):
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"network": ("backbone", "last_k"), "nothing": ("else",)}

    ways: Count = 5  # classes
    backbone: str = ""  # its name
    # how many blocks
    last_k: int | None = None
    keep: bool = True  # keep all
    shots: tuple[int, ...] = (5, 1)  # examples
    flat: Annotated[Inner, tyro.conf.OmitArgPrefixes] = field(default_factory=Inner)
    deep: Inner = field(default_factory=Inner)


def test_help_in_groups(capsys):
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], "mtl x")
    said = capsys.readouterr().out
    before, _, after = said.partition("network options")
    assert "--ways INT" in before
    assert "its name" in after
    assert "how many blocks" in after
    assert "nothing options" not in said
    assert said.startswith("usage: mtl x")


def test_comments_are_the_help():
    assert comments_of(Options) == {
        "ways": "classes", "backbone": "its name", "last_k": "how many blocks", "keep": "keep all", "shots": "examples",
    }  # fmt: skip
    found = comments_of(train.Config)
    assert found["out"].startswith("output folder"), "of the class itself"
    assert found["ways"] == "classes per task", "of the class that it is made from"


def test_words_fill_the_flat_dataclass():
    words = "--backbone b --last-k 2 --no-keep --shots 3 --class-level 1 --deep.class-level 2 --ways 4"
    assert parse(Options, words.split()) == Options(4, "b", 2, False, (3,), Inner(1), Inner(2))
    assert parse(Options, []) == Options()


def written(folder: Path, content: object, name: str = "run.yaml") -> str:
    text = json.dumps(content) if name.endswith("json") else yaml.safe_dump(content)
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_of_options_and_what_is_typed_counts_more(tmp_path):
    file = written(tmp_path, {"last-k": 3, "keep": False, "shots": [2], "class_level": 1, "deep": {"class-level": 2}})
    assert parse(Options, ["--config", file]) == Options(5, "", 3, False, (2,), Inner(1), Inner(2))
    assert parse(Options, [f"--config={file}", "--last-k", "4", "--keep"]).last_k == 4
    assert parse(Options, ["--shots", "7", "8", "--config", file]).shots == (7, 8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"wayz": 3}, "run.yaml: wayz is no option of this command (did you mean ways?)"),
        ({"deep": {"x": 3}}, "run.yaml: deep.x is no option of this command"),
        ({"deep": 3}, "run.yaml: deep is no option of this command"),
        ({"ways": {"a": 3}}, "run.yaml: ways: expected one value or a list, but it holds a"),
        ({"shots": [[1]]}, "run.yaml: shots: expected a list of plain values"),
        ({"ways": "x"}, "--ways: invalid literal for int()"),
        ({"ways": 0}, "--ways 0: expected 1 or more"),
        ([1], "run.yaml: expected options by name"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, said):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        parse(Options, ["--config", written(tmp_path, content)])
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_what_a_run_wrote_can_be_given_back(tmp_path):
    config = train.Config(
        out="o", data=("a b", "c"), backbone="n", ways=3, shots=(2,), outer_lr=1e-5, cross_validate=False, last_k=None,
        estimator=EstimatorOptions("windowed", window=3),
    )  # fmt: skip
    config = replace(config, questions=replace(config.questions, split="example", label_columns=("x",)))
    config = replace(config, memory=replace(config.memory, shard=True, examples_per_chunk=4))
    written(tmp_path, {"config": asdict(config), "versions": {"mtl": "0.1.0"}}, "config.json")
    assert parse(train.Config, ["--config", str(tmp_path)]) == config
    assert parse(train.Config, ["--config", str(tmp_path / "config.json"), "--ways", "4"]) == replace(config, ways=4)


def test_compare_trains_as_train_does():
    config = compare.Config(data=("d",), backbone="n", own_steps=7, ways=3)
    settings = config.settings
    assert (settings.warm_steps, settings.ways, settings.data) == (7, 3, ("d",))
    assert settings.generator == train.Config().generator


def test_a_run_of_another_recipe_can_be_given_back_where_its_own_options_are_at_their_defaults(tmp_path):
    own = {"encoder": "runs/encoder", "families": ["module", "word"]}
    facts = {"config": {"ways": 3, "backbone": "n", **own}, "defaults": {"ways": 5, **own}}
    written(tmp_path, facts, "config.json")
    assert parse(train.Config, ["--config", str(tmp_path)]) == train.Config(ways=3, backbone="n")
    facts["config"]["families"] = ["word"]
    written(tmp_path, facts, "config.json")
    with pytest.raises(ValueError, match=r"config\.json: families is no option of this command"):
        parse(train.Config, ["--config", str(tmp_path)])
