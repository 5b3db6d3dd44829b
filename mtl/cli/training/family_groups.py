"""``mtl train --group-families N``: which families help each other, and a run for each group of them.

``<out>/static`` is the static start on all families, where affinities are measured; ``groups.json``, ``affinity.csv``
and ``affinity.png`` say what was found. ``<out>/group-1``, ... are runs like any other, trained on one group each, and
judged by the same validation and test tasks; ``groups.csv`` has how each of them does on every family.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

import mtl
from mtl.cli.training import few_shot, run_folder
from mtl.cli.training.questions import FamilyMaker
from mtl.cli.training.settings import Settings
from mtl.fewshot.training.processes import from_main
from mtl.tools.files import write_whole
from mtl.tools.identity import digest
from mtl.tools.json_files import read_json
from mtl.tools.lock import folder_lock
from mtl.tools.text_tables import aligned

GROUPS = "groups.json"
LEAST = 3  # families: of two there is nothing to group
EPISODES = 16  # of each family, for affinities
Groups = tuple[tuple[str, ...], ...]
Number = int | str  # of groups; "auto" for the one with the least estimated loss
RunGroup = Callable[[Any, few_shot.Make, Accelerator], list[mtl.Comparison]]


def run_groups(
    config: Settings,
    number: Number,
    backbone: mtl.Backbone,
    make: few_shot.Make,
    accelerator: Accelerator,
    run: RunGroup,
) -> dict[str, list[mtl.Comparison]]:
    """Group the families that are trained on, and run each group in a folder of its own.

    Args:
        number: of groups, or ``"auto"``.
        run: settings of a group, its tasks and accelerator, to its tables.

    Returns:
        Tables by the name of a group's folder.

    Raises:
        ValueError: fewer than three families, more groups than families, or a folder of a run with other settings.
    """
    names = names_of(make, config)
    assert isinstance(make, FamilyMaker), "names_of has refused others"
    check_number(names, number)
    sources = few_shot.Sources.of(make, config)
    training = run_folder.identity_of_training(config, backbone, sources.train, sources.val)
    training |= {"group_families": number}
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(folder_lock(config.out))
            run_folder.take(config, training)
        groups = found_before(config) or found_now(config, number, backbone, make, sources, accelerator)
        found: dict[str, list[mtl.Comparison]] = {}
        for name, members in named(groups).items():
            print(f"\n{name}: {', '.join(members)}", flush=True)
            own = replace(config, out=str(Path(config.out) / name))
            found[name] = run(own, make.of_group(members), few_shot.accelerator_of(own))
        if accelerator.is_main_process:
            write_summary(Path(config.out), groups, found)
            run_folder.finish(config, digest(training))
    return found


def names_of(make: few_shot.Make, config: Settings) -> tuple[str, ...]:
    """Families that are trained on.

    Raises:
        ValueError: the data are not divided into families.
    """
    if not isinstance(make, FamilyMaker):
        raise ValueError(
            "--group-families groups data sets and label columns: name several with --data, --label-columns"
        )
    tasks = make("train", max(config.shots), config.queries)
    assert isinstance(tasks, mtl.data.FamilyTasks), "training tasks have no end"
    return tasks.names


def check_number(names: Sequence[str], number: Number) -> None:
    if len(names) < LEAST:
        raise ValueError(
            f"--group-families {number} of {len(names)} families to train on ({', '.join(names)}): expected at least "
            f"{LEAST}; name more --label-columns, or leave it out"
        )
    if isinstance(number, int) and number > len(names):
        raise ValueError(f"--group-families {number}: expected at most as many as families to train on, {len(names)}")


def named(groups: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Groups by the names of their folders."""
    return {f"group-{i}": tuple(members) for i, members in enumerate(groups, 1)}


def found_before(config: Settings) -> Groups | None:
    """What the main process finds in the folder."""
    return from_main(tuple(read_groups(config.out).values()) or None)


def found_now(
    config: Settings,
    number: Number,
    backbone: mtl.Backbone,
    make: FamilyMaker,
    sources: few_shot.Sources,
    accelerator: Accelerator,
) -> Groups:
    """Train the static start on all families, estimate affinities, and write down what groups there are."""
    statistics = few_shot.statistics_of(backbone, sources.train)
    static = few_shot.meta_train("static", config, backbone, sources, accelerator, statistics)
    tasks = make("train", max(config.shots), config.queries)
    assert isinstance(tasks, mtl.data.FamilyTasks), "training tasks have no end"
    found = mtl.affinity(static, tasks, episodes=EPISODES, seed=config.seed, progress=accelerator.is_main_process)
    groups = from_main(found.groups(None if isinstance(number, str) else number))
    if accelerator.is_main_process:
        out = Path(config.out)
        found.to_csv(out / "affinity.csv")
        found.figure(out / "affinity.png", groups)
        content = {"groups": named(groups), "generator": config.generator, "estimated_loss": found.loss(groups)}
        write_whole(out / GROUPS, json.dumps(content, indent=2).encode())
    return groups


def write_summary(out: Path, groups: Groups, found: Mapping[str, Sequence[mtl.Comparison]]) -> None:
    """``groups.csv``, also printed: accuracy in % of each group's generator on the test tasks of every family."""
    rows = [["family", "setting", "trained in", *found]]
    home = {family: name for name, members in named(groups).items() for family in members}
    for tables in zip(*found.values(), strict=True):
        for family in dict.fromkeys(tables[0].families):
            places = [i for i, name in enumerate(tables[0].families) if name == family]
            means = [f"{100 * table.rows[0].accuracy[places].mean():.1f}" for table in tables]
            rows.append([family, tables[0].setting, home.get(family, "none"), *means])
    print(f"\n{aligned(rows, True)}")
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    write_whole(out / "groups.csv", file.getvalue().encode())


def read_groups(folder: str | Path) -> dict[str, tuple[str, ...]]:
    """Families by the name of their group's folder; none where the folder is not one of groups."""
    path = Path(folder) / GROUPS
    if not path.is_file():
        return {}
    return {name: tuple(members) for name, members in read_json(path, {"groups": dict})["groups"].items()}


def generators_of(folder: str | Path) -> dict[str, Path]:
    """The generators of all groups; none where the folder is not one of groups."""
    names = read_groups(folder)
    kind = read_json(Path(folder) / GROUPS, {"generator": str})["generator"] if names else ""
    return {name: Path(folder) / name / kind / "final" for name in names}
