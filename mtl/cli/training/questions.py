"""Settings for data of your own with several kinds of question, and the tasks that they make."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mtl
from mtl.cli.options import Count
from mtl.cli.training.reading import smallest_class
from mtl.data import DividedFamilies, EvaluationTasks, FamilyRequest, FamilyTasks, InputCache


@dataclass(frozen=True)
class Questions:
    """Which label columns are asked about, and how they are divided; docs/several-kinds.md explains all of it."""

    label_columns: tuple[str, ...] = ()  # columns of labels, of all data sets or of one such as fashion:baseColour
    group_column: tuple[str, ...] = ()  # column, or pattern in file names; support and query never share a group
    split: Literal["class", "example", "family"] | None = None  # test on new classes, photographs or families
    hold_out_families: tuple[str, ...] = ()  # for the test alone, such as emoji.vendor or "omniglot.*"
    validation_families: tuple[str, ...] = ()  # for early stopping alone, likewise
    min_per_class: Count | None = None  # leave out smaller classes; by default those too small for shots + queries

    def asked(self) -> list[str]:
        """The options that were given, as they are typed."""
        return [f"--{k.replace('_', '-')}" for k, default in vars(Questions()).items() if getattr(self, k) != default]


@dataclass(frozen=True, eq=False)
class FamilyMaker:
    """Tasks of a part, shots and queries, by call, over all families of the data or those of one group.

    Args:
        config: settings of a few-shot recipe.
        inputs: preprocessing, with a cache for all tasks.
        group: families to train on; all where not given. Validation and test have all of them in any case.
    """

    config: Any
    divided: DividedFamilies
    inputs: InputCache
    group: tuple[str, ...] | None = None

    def of_group(self, names: Sequence[str]) -> FamilyMaker:
        """The same, trained on some families; others then count as unseen ones."""
        known = [name for found in self.divided.parts.values() for name in found]
        unseen = tuple(name for name in dict.fromkeys(known) if name not in names)
        return replace(self, divided=replace(self.divided, unseen=unseen), group=tuple(names))

    def __call__(self, part: str, shots: int, queries: int) -> FamilyTasks | EvaluationTasks:
        """Test tasks are as many for each family, about ``test_episodes`` in all."""
        config, group = self.config, self.group if part == "train" else None
        only = ("*",) if group is None else tuple(map(glob.escape, group))
        sizes: dict[str, Any] = {"ways": config.ways, "shots": shots, "queries": queries, "seed": config.seed}
        tasks = FamilyTasks(self.divided, part, preprocess=self.inputs, only=only, **sizes)
        if tasks.left_out and self.group is None:
            print(f"{part}, {shots}-shot: {'; '.join(tasks.left_out)}")
        return EvaluationTasks(tasks, -(-config.test_episodes // len(tasks.names))) if part == "test" else tasks


def make_family_tasks(config: Any, kind: Literal["images", "texts"], inputs: InputCache, **columns: Any) -> FamilyMaker:
    """Tasks over all families of the data, by the split that ``split.json`` beside the results holds.

    Args:
        config: settings of a few-shot recipe.
        kind: what the data sets hold.
        inputs: preprocessing, with a cache for all tasks.
        columns: more options of :func:`~mtl.data.open_families`.
    """
    q: Questions = config.questions
    families = mtl.data.open_families(
        config.data, q.label_columns, kind=kind, groups=q.group_column, **vars(config.reading), **columns
    )
    request = FamilyRequest(
        split=q.split,
        hold_out=q.hold_out_families,
        validation=q.validation_families,
        ways=config.ways,
        min_per_class=q.min_per_class or smallest_class(config),
        seed=config.seed,
    )
    divided = mtl.data.divide_families(families, Path(config.out) / "split.json", request)
    print("\n".join(divided.report))
    return FamilyMaker(config, divided, inputs)


def are_asked(data: Sequence[str], questions: Questions) -> bool:
    """Whether there are several data sets, or settings that only families have."""
    return len(data) > 1 or questions != Questions()


def episodes_of(tasks: mtl.TaskSource, asked: int) -> int:
    """How many test episodes there are to evaluate."""
    return tasks.episodes if isinstance(tasks, EvaluationTasks) else asked


def with_unseen(found: mtl.Comparison, tasks: mtl.TaskSource) -> mtl.Comparison:
    """The comparison, with unseen families listed apart."""
    return replace(found, unseen=tasks.tasks.unseen) if isinstance(tasks, EvaluationTasks) else found
