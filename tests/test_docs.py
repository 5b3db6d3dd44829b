"""The documentation works: its Python runs, its commands name recipes and options that exist, its files are there.

Snippets of one page run in order in one namespace, in a folder with small stand-ins for the networks, images and texts
that the page assumes. ``<!-- not run: reason -->`` before a block leaves it out.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import networks
import numpy as np
import pytest
import transformers
import tyro
from hub_stand_in import TOKEN, hub_stand_in
from PIL import Image

import mtl
from mtl import planning
from mtl.cli.main import NAMES
from mtl.metagrad import ESTIMATORS, EstimatorOptions
from mtl.metagrad.options import option_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>.+?) -->\n+)?^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
REGISTRIES = {
    name: registry
    for package in (mtl.metagrad, mtl.networks, mtl.fewshot)
    for name in ("ESTIMATORS", "INNER_OPTIMIZERS", "FAMILIES", "HEADS", "GENERATORS")
    if isinstance(registry := vars(package).get(name), dict)
}


def blocks(page: Path, language: str) -> Iterator[tuple[int, str, str | None]]:
    """Line, code and, where it is not run, the reason."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found["language"] == language:
            yield text.count("\n", 0, found.start("code")), textwrap.dedent(found["code"]), found["reason"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages assume: trained generators, a small BERT, images and texts by class."""
    folder = tmp_path_factory.mktemp("docs")
    bert(folder / "bert")
    vision = [(f"{run}/channelwise", "mtl/glyphs") for run in ("few_shot_vision", "train")]
    for run, name in (*vision, ("few_shot_text/dense", str(folder / "bert"))):
        backbone = mtl.load_backbone(name, pretrained=name == "mtl/glyphs")
        learner = mtl.MetaLearner(backbone, mtl.SupportConditioned(backbone.sites, backbone.width, hidden=16))
        mtl.save_pretrained(learner, folder / f"runs/{run}/final")
    random = np.random.default_rng(0)
    for collection, classes in (("trees", 10), ("leaves", 4), ("bark", 4)):
        for i in range(classes):
            for j in range(6):
                draw(random, folder / collection / f"class_{i}" / f"{j}.png")
    for name in [*(f"{kind}_{i}" for kind in ("scratch", "dent") for i in range(5)), "new"]:
        draw(random, folder / f"{name}.png")
    write_clothes(random, folder / "clothes")
    with (folder / "tickets.csv").open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["body", "topic"])
        rows.writerows([" ".join(random.choice(list("abcdefgh"), 9)), f"topic {i % 10}"] for i in range(80))
    return folder


def write_clothes(random: np.random.Generator, folder: Path) -> None:
    """Photographs with three labels: class folders and a table beside them."""
    rows = ["file,colour,season,photographer"]
    for i in range(60):
        draw(random, folder / f"type_{i % 6}" / f"{i}.png")
        rows.append(f"type_{i % 6}/{i}.png,colour {i // 12},season {i % 4},person {i % 5}")
    (folder / "attributes.csv").write_text("\n".join(rows))


def bert(folder: Path) -> None:
    folder.mkdir()
    config = {"model_type": "bert", **networks.SIZES, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def draw(random: np.random.Generator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the stand-ins to work in. Networks of the pages are small there; what pages register is removed."""
    shutil.copytree(stand_ins, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    load = mtl.load_backbone

    def load_small(name: str | Path, **options: Any) -> mtl.Backbone:
        if name in ("mtl/minilm", "hf/meta-llama/Llama-3.1-8B"):
            return load(tmp_path / "bert", pretrained=False, **options)
        if str(name).startswith("vit"):
            return load("vit_tiny_patch16_224", pretrained=False, **networks.VIT, **options)
        if str(name).startswith("resnet"):
            return load("test_resnet", pretrained=False, **networks.SMALL, **options)
        return load(name, **options)

    monkeypatch.setattr(mtl, "load_backbone", load_small)
    rows = {name: dict(registry) for name, registry in REGISTRIES.items()}
    yield tmp_path
    for name, registry in REGISTRIES.items():
        for added in registry.keys() - rows[name].keys():
            del registry[added]


def share(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A hub to push to, and the result of a run."""
    hub = hub_stand_in(monkeypatch, folder / "cache")
    hub.__enter__()
    request.addfinalizer(lambda: hub.__exit__(None, None, None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    backbone = mtl.load_backbone("mtl/glyphs", sites="none", levels="all")
    generator = mtl.fewshot.make_generator("channelwise", backbone, per_channel=False)
    mtl.save_pretrained(mtl.MetaLearner(backbone, generator), folder / "runs/trees/final")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "python"))], ids=name_of)
def test_snippets_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    if page.name == "sharing.md":
        share(folder, monkeypatch, request)
    module = ModuleType("snippets")
    monkeypatch.setitem(sys.modules, "snippets", module)  # dataclasses look for theirs
    for line, code, reason in blocks(page, "python"):
        if reason is None:
            exec(compile("\n" * line + code, page, "exec"), vars(module))


def test_few_snippets_are_left_out():
    left_out = [(name_of(p), reason) for p in PAGES for _, _, reason in blocks(p, "python") if reason]
    assert len(left_out) <= 3, left_out


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command that runs a recipe, the planner or ``mtl``, those before its name left out."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        for part in re.split(r"&&|;", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # prose
                continue
            for i, word in enumerate(words):
                if re.fullmatch(r"recipes/.*\.py", word) or words[i - 1 : i + 1] == ["-m", "mtl.planning"]:
                    yield words[i:]
                if (
                    word == "mtl"
                    and words[i + 1 : i + 2]
                    and words[i + 1] in NAMES
                    and (i == 0 or words[i - 1] == "-m")
                ):
                    yield [f"mtl {words[i + 1]}", *words[i + 2 :]]


def commands_of(page: Path) -> list[list[str]]:
    """Of a page, in blocks and inline; of a Python file, in its first docstring."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        return [c for c in commands(text.split('"""')[1]) if not c[0].endswith("...")] if '"""' in text else []
    shell = [code for _, code, _ in blocks(page, "bash")]
    inline = [code.replace("\n", " ") for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", BLOCK.sub("", text))]
    return [c for text in (*shell, *inline) for c in commands(text)]


def config_of(recipe: str) -> type:
    """What the command line of a recipe, or of the planner, fills."""
    if recipe == "mtl.planning":
        return planning.PlanOptions
    if recipe.startswith("mtl "):
        return importlib.import_module(f"mtl.cli.commands.{recipe.removeprefix('mtl ')}").Config
    for place in (ROOT / "recipes", (ROOT / recipe).parent):
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    return importlib.import_module(Path(recipe).stem).Config


def check_options(command: list[str]) -> None:
    recipe, *options = command
    if recipe.startswith("mtl ") and "--config" in options:  # a file of options, which is not there
        del options[(place := options.index("--config")) : place + 2]
    if "..." not in options:
        config = tyro.cli(config_of(recipe), args=options)  # SystemExit with its message when one does not fit
        for value in vars(config).values():
            if isinstance(value, EstimatorOptions):
                value.build()
        return
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        tyro.cli(config_of(recipe), args=["--help"])
    assert {o for o in options if o.startswith("--")} <= set(re.findall(r"--[\w.-]+", shown.getvalue()))


@pytest.mark.parametrize(
    "page", [p for p in [*PAGES, *sorted((ROOT / "recipes").rglob("*.py"))] if commands_of(p)], ids=name_of
)
def test_commands_fit(page: Path):
    for command in commands_of(page):
        assert command[0].startswith("mtl") or (ROOT / command[0]).is_file(), f"{command[0]} is no recipe"
        if len(command) > 1:
            try:
                check_options(command)
            except SystemExit as error:
                pytest.fail(f"{shlex.join(command)}: not accepted ({error})")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_tests_and_files_that_are_named_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    missing = [name for name in set(re.findall(r"`(test_\w+)`", text)) if f"def {name}(" not in tests]
    places = (ROOT, ROOT / "mtl", ROOT / "mtl/metagrad")
    files = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|png))`", text))
    missing += [f for f in files if "/" in f and not any((place / f).exists() for place in places)]
    assert not missing


def test_the_code_names_pages_that_exist():
    sources = [p for folder in ("mtl", "recipes") for p in (ROOT / folder).rglob("*.py")]
    named = {page for p in sources for page in re.findall(r"docs/[\w/-]+\.md", p.read_text(encoding="utf-8"))}
    assert len(named) > 3
    assert not [page for page in named if not (ROOT / page).is_file()]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 125


def test_every_estimator_has_its_row():
    rows = (ROOT / "docs/choosing-an-estimator.md").read_text(encoding="utf-8").splitlines()
    for name, cls in ESTIMATORS.items():
        options = ", ".join(f"`{option}`" for option in option_names(name))
        assert f"| `{name}` | `{cls.__name__}` | {ESTIMATORS.help(name)} | {options} |" in rows
