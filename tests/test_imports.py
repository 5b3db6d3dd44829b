"""Importing the package loads nothing that the program does not use, and every public name is there all the same."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mtl
import mtl.tools

SLOW = {"torch", "timm", "transformers", "accelerate", "datasets", "torchvision", "matplotlib", "sympy", "sklearn"}
LAZY = [mtl, mtl.tools]


def loaded_by(line: str) -> set[str]:
    """Slow packages that a fresh process has loaded after a line."""
    told = f"import json, sys\n{line}\nprint(json.dumps([n for n in {sorted(SLOW)} if n in sys.modules]))"
    said = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout
    return set(json.loads(said.splitlines()[-1]))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import mtl", set()),
        ("from mtl.cli.main import main; main(['--help'])", set()),
        ("import mtl; mtl.InnerProblem, mtl.solve", {"torch"}),
        ("from mtl.data import open_images, GlyphTasks", {"torch"}),
        ("from mtl.tools import Comparison", set()),
        ("from mtl.cli.main import main; main(['info'])", {"torch"}),
        ("from mtl.cli.parsing import parse; from mtl.cli.commands.info import Config; parse(Config, [])", set()),
    ],
)
def test_a_line_loads_no_more_than_it_needs(line: str, expected: set[str]):
    assert loaded_by(line) == expected


def test_learners_load_no_package_that_few_tasks_need():
    assert not loaded_by("import mtl.fewshot") & {"sklearn", "datasets"}


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_lists_of_names_agree(package: ModuleType):
    """Of what is loaded late, what type checkers see, and what is public."""
    tree = ast.parse(Path(str(package.__file__)).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {(node.module, a.name) for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    late = {(home, name) for home, names in package.HOMES.items() for name in names.split()}
    modules = {f"{package.__name__}.{name}" for home, name in late if home == package.__name__}
    assert seen == {(home, name) for home, name in late if f"{home}.{name}" not in modules or name in package.__all__}
    assert set(package.__all__) <= {name for _, name in late}
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_every_name_is_that_of_its_module(package: ModuleType):
    for home, names in package.HOMES.items():
        for name in names.split():
            module = f"{package.__name__}.{name}"
            if home == package.__name__:
                assert getattr(package, name) is importlib.import_module(module)
                continue
            assert getattr(package, name) is getattr(importlib.import_module(home), name)
            with pytest.raises(ModuleNotFoundError):  # a module of that name would hide it once it is imported
                importlib.import_module(module)


def test_star_import_and_pickles_work():
    names: dict[str, object] = {}
    exec("from mtl import *", names)
    assert set(mtl.__all__) <= set(names)
    assert pickle.loads(pickle.dumps(mtl.InnerSGD)) is mtl.InnerSGD


def test_a_wrong_name_is_an_error():
    with pytest.raises(AttributeError, match=r"module 'mtl' has no attribute 'load_network'"):
        mtl.load_network  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        exec("from mtl import load_network")
