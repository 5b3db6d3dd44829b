"""The wheel has all of the package and nothing else, works where there is no checkout, and says who, what and where."""

from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOP = {
    "pyproject.toml", "mtl", "recipes", "tests", "docs", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md",
    "LICENSE", "SECURITY.md",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, with what is installed already; the folder that it unpacks to."""
    pytest.importorskip("setuptools", "77")
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(place), str(source)], check=True)
    [path] = place.glob("*.whl")
    assert path.name == f"mtl-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(place / "unpacked")
    return place / "unpacked"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    [path] = wheel.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text())


def test_all_of_the_package_is_in_it_and_nothing_else(wheel: Path):
    there = {p.relative_to(wheel).as_posix() for p in wheel.rglob("*") if p.is_file() and ".dist-info" not in str(p)}
    files = [p for p in (ROOT / "mtl").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert there == {p.relative_to(ROOT).as_posix() for p in files}
    assert {"mtl/py.typed", "mtl/fewshot/assets/universal.safetensors"} <= there


def test_it_works_without_a_checkout(wheel: Path, tmp_path: Path):
    """The network and the generator that come with it are found."""
    code = (
        "import mtl; b = mtl.load_backbone('mtl/glyphs', sites='none', levels='all'); "
        "mtl.load_generator('mtl/universal', b); print(mtl.__version__, mtl.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(wheel), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    version, file = ran.stdout.split()
    assert version == PROJECT["version"]
    assert Path(file).is_relative_to(wheel)


def test_its_commands_are_those_of_the_project(wheel: Path):
    parser = configparser.ConfigParser()
    parser.read(wheel.glob("*.dist-info/entry_points.txt"))
    found = dict(parser["console_scripts"]) if parser.has_section("console_scripts") else {}
    assert found == PROJECT.get("scripts", {})
    for target in found.values():
        module = target.partition(":")[0].replace(".", "/")
        assert (wheel / f"{module}.py").is_file() or (wheel / module / "__init__.py").is_file(), target


def test_it_says_who_what_and_where(metadata: Message):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Author"] == "The mtl authors"
    assert metadata.get_all("Project-URL")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Programming Language :: Python :: 3.11" in metadata.get_all("Classifier", [])
    assert {"dev", "text", "vision"} <= set(metadata.get_all("Provides-Extra", []))


def test_extras_do_not_leak_into_what_everybody_needs(metadata: Message):
    needed = [
        line.split(">")[0].split("=")[0].strip() for line in metadata.get_all("Requires-Dist", []) if ";" not in line
    ]
    assert {"torch", "timm", "transformers", "accelerate"} <= set(needed)
    assert not {"pytest", "fastapi", "peft", "onnx", "wandb"} & set(needed)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "license"} <= cited.keys()
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert any("2006.04298" in str(reference) for reference in cited["references"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_top_of_the_project_stays_small():
    command = ["git", "-C", str(ROOT), "ls-tree", "--name-only", "HEAD"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert {name for name in names if name and not name.startswith(".")} <= TOP


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "README.md"])
def test_links_of_the_top_pages_lead_somewhere(page: str):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert all((ROOT / link.partition("#")[0]).exists() for link in links if link.partition("#")[0]), links
