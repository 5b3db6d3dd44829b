"""Embedded text: docstrings of Python's own standard library, with names masked so that a task is about meaning.

Sources are parsed, never imported: importing has side effects, and some modules exist on one platform only. What Linux
distributions package apart (tkinter, idlelib, distutils, the tests) is left out, so that every installation of one
Python version gives the same texts.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGES = "distutils ensurepip idlelib lib2to3 pydoc_data tkinter turtle turtledemo venv"
_FOLDERS = "test tests idle_test site-packages dist-packages"
OFTEN_MISSING = frozenset(f"{_PACKAGES} {_FOLDERS}".split())
MASK = "_"
FEWEST_WORDS = 4  # left after masking; "Return _." says nothing of where it is from

_WORD = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_MASKS = re.compile(rf"{MASK}(?:[\s.,'\"`*()-]*{MASK})+")
_PLAIN = re.compile(r"[a-z]{2,}|[A-Z][a-z]+", re.ASCII)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_DOCUMENTED = (ast.Module, *_DEFINITIONS)


@dataclass(frozen=True)
class Docstring:
    """The first paragraph of a docstring.

    Args:
        text: on one line, names masked.
        module: top-level module, such as ``"email"``.
        file: its source file, such as ``"email/message.py"``.
        owner: the class that it documents or whose method it documents, with its file; the file alone outside classes.
    """

    text: str
    module: str
    file: str
    owner: str


@cache
def load_docstrings() -> tuple[Docstring, ...]:
    """All docstrings with enough words, in the order of their files. Seconds, the first time.

    A text that several modules share (*Close the connection.*) belongs to none of them and is left out; one that a
    module repeats is kept once.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = [d for path in _sources(root) for d in _docstrings(path, path.relative_to(root).as_posix())]
    modules: dict[str, set[str]] = {}
    for d in found:
        modules.setdefault(d.text.lower(), set()).add(d.module)
    kept = {d.text.lower(): d for d in reversed(found) if len(modules[d.text.lower()]) == 1}  # the first of repeats
    return tuple(reversed(kept.values()))


def grouped(key: Callable[[Docstring], str], least: int) -> dict[str, tuple[int, ...]]:
    """Positions in :func:`load_docstrings` by ``key``, of the groups that have at least ``least``; names sorted.

    >>> "email" in grouped(lambda d: d.module, least=20)
    True
    """
    docstrings = load_docstrings()
    counts = Counter(map(key, docstrings))
    groups: dict[str, list[int]] = {name: [] for name in sorted(counts) if counts[name] >= least}
    for i, d in enumerate(docstrings):
        if key(d) in groups:
            groups[key(d)].append(i)
    return {name: tuple(places) for name, places in groups.items()}


def mask_names(text: str, modules: set[str], defined: set[str]) -> str:
    """Replace names of modules and identifiers, which give the answer away by spelling, with ``_``.

    A word counts as the name of a module when one begins with the other and both have three letters or more: *zip* in
    zipfile, *threads* in threading. An identifier is a word with an underscore, a digit, a dot or a capital inside, one
    that is called, or a capitalised one that the file defines. Plain lower-case words stay even where they are names
    too (*name*, *file*, *close*), or little would be left to read.

    >>> mask_names("Send the LIST command of ftplib.FTP; see retrlines().", {"ftplib"}, {"FTP", "retrlines"})
    'Send the LIST command of _; see _().'
    """

    def masked(match: re.Match[str]) -> str:
        word = match.group()
        called = text[match.end() : match.end() + 1] == "("
        spelled = not _PLAIN.fullmatch(word) and not (word.isupper() and word not in defined) and len(word) > 1
        named = word in defined and not word.islower()
        return MASK if called or spelled or named or _is_module(word.lower(), modules) else word

    return _MASKS.sub(MASK, _WORD.sub(masked, text))


def _is_module(word: str, modules: set[str]) -> bool:
    if len(word) < 3:
        return word in modules
    return any(name.startswith(word) or (len(name) > 2 and word.startswith(name)) for name in modules)


def _sources(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        # _pydatetime and the like repeat the module that they implement
        if not parts[0].startswith("_") and not OFTEN_MISSING.intersection(p.removesuffix(".py") for p in parts):
            yield path


def all_texts(without: Container[str]) -> list[Docstring]:
    """Every paragraph of every docstring and every comment of all modules but some: text to pretrain on.

    Args:
        without: top-level modules that are kept for later, such as those of the validation and test parts.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [(path, path.relative_to(root).as_posix()) for path in _sources(root)]
    found = [d for path, file in files if _module(file) not in without for d in _docstrings(path, file, whole=True)]
    return list({d.text.lower(): d for d in found}.values())


def _docstrings(path: Path, file: str, whole: bool = False) -> Iterator[Docstring]:
    """First paragraphs; with ``whole`` the others, and comments, too."""
    source = path.read_bytes()
    statements = list(_statements(ast.parse(source), file))
    names = {p.removesuffix(".py").lower() for p in file.split("/")} - {"__init__", "__main__"}
    defined = {name for _, node in statements for name in _defined(node)}
    found = [(owner, ast.get_docstring(node) or "") for owner, node in statements if isinstance(node, _DOCUMENTED)]
    paragraphs = [(owner, p) for owner, text in found for p in text.split("\n\n")[: None if whole else 1]]
    if whole:
        paragraphs += [(file, comment) for comment in _comments(source.decode(errors="replace"))]
    for owner, paragraph in paragraphs:
        text = mask_names(" ".join(paragraph.split()), names, defined)
        if ">>>" not in text and len(re.findall(r"[A-Za-z]{2,}", text)) >= FEWEST_WORDS:
            yield Docstring(text, _module(file), file, owner)


def _module(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def _comments(source: str) -> Iterator[str]:
    """Lines that are comments, those that follow each other as one."""
    for block in re.findall(r"(?:^[ \t]*#.*\n)+", source, re.MULTILINE):
        yield block.replace("#", " ")


def _statements(node: ast.AST, owner: str) -> Iterator[tuple[str, ast.AST]]:
    """The file and all statements in it, each with its owner."""
    if isinstance(node, ast.ClassDef):
        owner = f"{owner} {node.name}"
    yield owner, node
    # not ast.walk: most nodes are expressions, which define nothing, and there are a million of them
    for block in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            yield from _statements(child, owner)


def _defined(statement: ast.AST) -> Iterator[str]:
    """Names that a statement defines or imports."""
    if isinstance(statement, _DEFINITIONS):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield from (alias.asname or alias.name).split(".")
