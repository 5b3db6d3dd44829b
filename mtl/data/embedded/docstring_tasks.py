"""Embedded few-shot text tasks: which module of Python's standard library is a docstring from?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from mtl.data.embedded.docstrings import Docstring, grouped, load_docstrings
from mtl.data.own.class_tasks import ClassTasks
from mtl.data.own.input_cache import InputCache, Preprocess
from mtl.data.own.ranges import IntOrRange, as_range
from mtl.data.own.splits import ClassSplit, split_classes
from mtl.data.own.texts.collection import TextCollection
from mtl.episode import Episode

Part = Literal["train", "val", "test"]
LEAST = 20  # texts of a module that is a class
FAMILIES = ("module", "file", "owner")


@cache
def docstring_split(seed: int = 0) -> ClassSplit:
    """Modules with 20 texts or more, divided into train, val and test.

    >>> sum(map(len, docstring_split().parts.values())) > 40
    True
    """
    return split_classes(tuple(grouped(_module, LEAST)), seed=seed)


class DocstringTasks:
    """Endless episodes of one part, each a function of ``(seed, part, index)`` alone and the version of Python.

    The classes of an episode are modules (family ``"module"``). To learn from there are finer ones too, all within the
    modules of the part: source files (``"file"``) and classes with their methods (``"owner"``).

    Args:
        part: ``"train"``, ``"val"`` or ``"test"``; no module is in two of them.
        preprocess: strings to tokens, see :class:`~mtl.ClassTasks`.
        ways: classes per episode, or a range.
        shots: support texts per class, or a range.
        queries: query texts per class.
        families: kinds of tasks; episode ``i`` is of family ``i % len(families)``.
        seed: of the split and of the episodes.

    Raises:
        ValueError: for an unknown part or family, or fewer classes with ``shots + queries`` texts than ways.
    """

    def __init__(
        self,
        part: Part,
        *,
        preprocess: Preprocess | InputCache,
        ways: IntOrRange = 5,
        shots: IntOrRange = 5,
        queries: int = 10,
        families: tuple[str, ...] = ("module",),
        seed: int = 0,
    ) -> None:
        modules = docstring_split(seed).parts
        if part not in modules:
            raise ValueError(f"part={part!r}: expected one of {', '.join(modules)}")
        if not families or not set(families) <= set(FAMILIES):
            raise ValueError(f"families={families!r}: expected some of {', '.join(FAMILIES)}")
        least = max(LEAST if families == ("module",) else 0, as_range("shots", shots, 1)[1] + queries)
        cache = preprocess if isinstance(preprocess, InputCache) else InputCache(preprocess)
        self.sources: list[ClassTasks] = []
        for family in families:
            collection = docstring_collection(family, modules[part], least)
            self.sources.append(
                ClassTasks(
                    collection,
                    collection.class_names,
                    preprocess=cache,
                    ways=ways,
                    shots=shots,
                    queries=queries,
                    seed=seed,
                    family=family,
                )
            )

    def identity(self) -> dict[str, Any]:
        """The identities of all families; see :class:`~mtl.episode.Identified`. Other versions of Python differ."""
        return {"kind": "DocstringTasks", "families": {tasks.family: tasks.identity() for tasks in self.sources}}

    def read(self, index: int) -> tuple[list[str], list[str], list[str]]:
        """Class names, support texts and query texts of episode ``index``; see :meth:`mtl.ClassTasks.read`."""
        return self.sources[index % len(self.sources)].read(index)

    def sample(self, index: int) -> Episode:
        """Episode ``index`` (at least 0), alone on its task axis; see :meth:`mtl.ClassTasks.sample`."""
        return self.sources[index % len(self.sources)].sample(index)


def docstring_collection(family: str, modules: tuple[str, ...], least: int) -> TextCollection:
    """The texts of some modules by class, for classes of ``least`` texts or more."""
    docstrings = load_docstrings()
    groups: Mapping[str, tuple[int, ...]] = grouped(_KEYS[family], least)
    items = {name: places for name, places in groups.items() if docstrings[places[0]].module in modules}
    return TextCollection("Python's standard library", items, [d.text for d in docstrings])


def _module(docstring: Docstring) -> str:
    return docstring.module


_KEYS = {"module": _module, "file": lambda d: d.file, "owner": lambda d: d.owner}
