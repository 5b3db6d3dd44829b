"""Command lines of all recipes: help in plain English, estimators by name with plain options."""

from __future__ import annotations

import importlib
import re

import pytest

import mtl
from mtl.cli.answers import parse

RECIPES = [
    "affinity", "compare_readouts", "few_shot_text", "few_shot_vision", "finetune", "maml", "meta_rl",
    "meta_transfer", "policy_affinity", "reweighting", "train_universal",
]  # fmt: skip
BENCHMARKS = [
    "adapt_many", "calibrate_planning", "compare_accuracy", "compare_estimators", "compare_peers", "compare_precision",
    "compare_speed", "compare_text", "compare_transfer_costs", "draw_cliff", "gpu", "horizon", "large_backbone",
    "training_speed",
]  # fmt: skip
ASSETS = ["assets.pretrain_docstrings", "assets.pretrain_glyphs", "assets.pretrain_scans"]


@pytest.mark.parametrize("name", RECIPES + BENCHMARKS + ASSETS)
def test_help_is_plain_text(name, capsys):
    config = importlib.import_module(name).Config
    with pytest.raises(SystemExit) as stopped:
        parse(config, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"\\[a-z]+|:math:|:class:|``|\$", text), "no LaTeX and no markup in a terminal"


@pytest.mark.parametrize("name", ["few_shot_text", "few_shot_vision", "large_backbone"])
def test_an_estimator_is_a_name_with_plain_options(name):
    module = importlib.import_module(name)
    config = parse(module.Config, ["--estimator", "windowed", "--window", "3", "--pull", "reverse"])
    assert config.estimator.build() == mtl.Windowed(3, pull="reverse")
    config = parse(module.Config, ["--estimator", "truncated", "--last-steps", "2"])
    assert config.estimator.build() == mtl.metagrad.Truncated(2)


@pytest.mark.parametrize("name", [*RECIPES, "minimal", *BENCHMARKS, *ASSETS])
def test_a_recipe_begins_with_a_sentence_and_a_command(name):
    text = importlib.import_module(name).__doc__
    first, _, rest = text.partition("\n\n")
    assert len(first.splitlines()) == 1
    assert first[0].isupper()
    assert first[-1] in ".?"
    assert rest.lstrip().startswith(("python recipes/", 'pip install -e ".[bench]"'))
