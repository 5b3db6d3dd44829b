"""Adapting to many tasks at once, each with classes of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs
from mtl.fewshot.adapted import Adapted
from mtl.fewshot.adapting import Adaptation
from mtl.fewshot.choosing import MOST_FOLDS
from mtl.fewshot.living import Support
from mtl.fewshot.many_items import SupportReader
from mtl.fewshot.moments import Moments
from mtl.fewshot.raw_items import BAR_DELAY
from mtl.networks.backbones import Backbone
from mtl.tools.hints import did_you_mean
from mtl.tools.progress import ProgressBar

_VALUES_PER_BATCH = 2**25  # numbers of tasks on a readout that are adapted to in one batch, all folds together
_PER_CHANNEL = 64  # that a generator computes of each channel
_NAMED = 3  # failures in a warning


@dataclass(frozen=True, eq=False)
class ManyAdapted(Mapping[str, Adapted]):
    """Adapted tasks by name, in the order in which they were given.

    Args:
        tasks: those that were adapted to.
        failures: why the others were not, one line each.
    """

    tasks: Mapping[str, Adapted]
    failures: Mapping[str, str]

    def __getitem__(self, name: str) -> Adapted:
        if name in self.tasks:
            return self.tasks[name]
        if name in self.failures:
            raise KeyError(f"task {name!r} was not adapted to: {self.failures[name]}")
        meant = did_you_mean(name, self.tasks, 3, show=repr)
        raise KeyError(f"there is no task {name!r}" + (f"; {meant}" if meant else ""))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def save(self, folder: str | Path, *, half: bool = False) -> list[Path]:
        """Write each task to a file of its own, ``<folder>/<name>.mtl``; see :meth:`Adapted.save`.

        Raises:
            ValueError: a task's name is no name of a file; nothing is written then.
        """
        folder = Path(folder)
        for name in self.tasks:
            if not name or name.startswith(".") or Path(name).name != name:
                raise ValueError(f"task {name!r} cannot be a file of this name; save it with adapted.save(path)")
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / f"{name}.mtl": adapted for name, adapted in self.tasks.items()}
        spec = next(iter(self.tasks.values())).model.backbone.spec() if files else {}  # of the network of all
        for path, adapted in files.items():
            adapted.task().write(path, spec, half=half)
        return list(files)


def tasks_by_name(tasks: Any) -> dict[str, Any]:
    """Labelled items by task name; of a folder, each sub-folder is a task.

    Raises:
        ValueError: there is none, or it is something else.
    """
    if isinstance(tasks, str | os.PathLike):
        folder = Path(tasks).expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is no folder; expected one with a sub-folder per task, or {{name: items by class}}"
            )
        tasks = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    if not isinstance(tasks, Mapping):
        raise ValueError(f"expected {{task name: items by class}}, or a folder of them; got a {type(tasks).__name__}")
    if not tasks:
        raise ValueError("no task was given; expected {task name: items by class}")
    return {str(name): items for name, items in tasks.items()}


def adapt_to_many(
    adaptation: Adaptation, tasks: Any, batch_size: int, progress: bool, background: Moments | None = None
) -> ManyAdapted:
    """Read the items of all tasks in full batches, and adapt to tasks of equal sizes together.

    Args:
        tasks: see :func:`tasks_by_name`.
        background: of the :class:`Support` of every task.

    Raises:
        ValueError: not one task could be adapted to.
    """
    given, backbone = tasks_by_name(tasks), adaptation.loop.model.backbone
    found, failures = dict[str, Adapted](), dict[str, str]()
    groups: dict[tuple[int, int, int], dict[str, Support]] = {}

    def flush(group: dict[str, Support]) -> None:
        found.update(_adapted(adaptation, group, background))
        group.clear()

    reader = SupportReader(backbone, given, batch_size)
    for name, support in ProgressBar(reader, total=len(given), unit="task", delay=BAR_DELAY, show=progress):
        if isinstance(support, str):
            failures[name] = support
            continue
        sizes = _sizes(support.examples.labels, adaptation.leaves_out)
        group = groups.setdefault(sizes, {})
        group[name] = support
        if len(group) >= _tasks_per_batch(backbone, sizes, batch_size):
            flush(group)
    for group in groups.values():
        flush(group)
    _tell(failures, len(given))
    return ManyAdapted({name: found[name] for name in given if name in found}, failures)


def _sizes(labels: Tensor, folds: bool) -> tuple[int, int, int]:
    """Ways, examples and folds: tasks that share them are adapted to together as they are alone."""
    counts = labels[0].bincount()
    return len(counts), labels.shape[1], min(int(counts.min()), MOST_FOLDS) if folds else 1


def _tasks_per_batch(backbone: Backbone, sizes: tuple[int, int, int], batch_size: int) -> int:
    _, n, folds = sizes
    if backbone.sites:  # all their examples pass through the network together
        return max(1, batch_size // (n * folds))
    return max(1, _VALUES_PER_BATCH // (backbone.width * folds * (n + _PER_CHANNEL)))


def _adapted(adaptation: Adaptation, group: Mapping[str, Support], background: Moments | None) -> dict[str, Adapted]:
    if not group:
        return {}
    supports = list(group.values())
    inputs = Inputs.cat(Inputs.pad([s.examples.inputs for s in supports]))
    labels = torch.cat([s.examples.labels for s in supports])
    batch = adaptation(Support((), Examples(inputs, labels), background=background))
    return {name: replace(batch[i], class_names=support.names) for i, (name, support) in enumerate(group.items())}


def _tell(failures: Mapping[str, str], count: int) -> None:
    """Of tasks that were left out.

    Raises:
        ValueError: all were.
    """
    if not failures:
        return
    named = "; ".join(f"{name!r}: {why}" for name, why in list(failures.items())[:_NAMED])
    more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    if len(failures) == count:
        raise ValueError(f"none of {count} tasks could be adapted to ({named}{more})")
    warnings.warn(
        f"{len(failures)} of {count} tasks were left out ({named}{more}); see failures of what is returned",
        stacklevel=4,
    )
