"""What lies in the folder of a run, finished or not; nothing is changed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtl
from mtl.cli.training.run_folder import CONFIG, FINISHED, TRAIN, command_of, defaults_of
from mtl.cli.training.settings import Settings
from mtl.fewshot.training import read_metrics
from mtl.tools.json_files import read_json

STAGE = "*/*-inner-steps"
TABLE = "*-shot.json"
PATTERNS = (CONFIG, TABLE, STAGE, "*.png", "*.csv")  # one of them is in every folder of a run


@dataclass(frozen=True)
class Stage:
    """One training: of which generator, with how many inner steps, and its metrics step by step."""

    generator: str
    inner_steps: str
    metrics: list[dict[str, float]]

    @property
    def name(self) -> str:
        return f"{self.generator}, {self.inner_steps.replace('-', ' ')}"


@dataclass(frozen=True)
class Run:
    """What a run wrote.

    Args:
        folder: of the run.
        command: that goes on with it, given its settings.
        settings: by name, as in config.json.
        defaults: likewise, before anything was said.
        versions: of packages.
        finished: whether all was done.
        comparisons: the tables, most shots first.
        stages: trainings, with at least one step.
        split: classes of the parts, see ``split.json``.
        damaged: files that could not be read, and why.
    """

    folder: Path
    command: str
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    versions: Mapping[str, Any]
    finished: bool
    comparisons: tuple[mtl.Comparison, ...]
    stages: tuple[Stage, ...]
    split: Mapping[str, Any]
    damaged: tuple[str, ...]

    @staticmethod
    def read(folder: Path) -> Run:
        """Whatever is there.

        Raises:
            ValueError: nothing of a run is there.
        """
        if not folder.is_dir() or not any(any(folder.glob(pattern)) for pattern in PATTERNS):
            raise ValueError(f"{folder}: no run is there; expected a folder with {CONFIG}, as mtl train writes it")
        damaged: list[str] = []
        facts = _json(folder / CONFIG, damaged)
        return Run(
            folder=folder,
            command=command_of(facts),
            settings=_object(facts.get("config")),
            defaults=_object(facts.get("defaults")) or defaults_of(Settings),
            versions=_object(facts.get("versions")),
            finished=(folder / FINISHED).is_file(),
            comparisons=_comparisons(folder, damaged),
            stages=_stages(folder),
            split=_json(folder / "split.json", damaged),
            damaged=tuple(damaged),
        )

    @property
    def kind(self) -> str | None:
        """Kind of the generator that was trained; None where nothing says it, or where methods were compared alone."""
        return str(self.settings["generator"]) if self.command == TRAIN and self.settings.get("generator") else None

    @property
    def backbone(self) -> str:
        """Name of the frozen network."""
        for path in sorted(self.folder.glob("*/final/config.json")):
            saved = _object(_object(_json(path, [])).get("backbone"))
            if name := _object(saved.get("load")).get("name"):
                return str(name)
        return str(self.settings.get("backbone") or "the embedded network")

    @property
    def generator(self) -> Path | None:
        """Folder of the trained generator, once it is there."""
        found = [p.parent for p in sorted(self.folder.glob("*/final/generator.safetensors"))]
        mine = [p for p in found if p.parent.name == self.kind] or [p for p in found if p.parent.name != "static"]
        return mine[0] if mine else None

    @property
    def missing(self) -> list[str]:
        """What an unfinished run has still to do."""
        said = [f"{name} is damaged" for name in self.damaged]
        if self.finished:
            return said
        if self.kind and not self.generator:
            said.append("the generator is not trained yet")
        shown = {c.setting.rpartition(" ")[2] for c in self.comparisons}
        wanted = self.settings.get("shots")
        wanted = wanted if isinstance(wanted, list) else []
        return said + [f"no table of {shots}-shot tasks yet" for shots in wanted if f"{shots}-shot" not in shown]


def _comparisons(folder: Path, damaged: list[str]) -> tuple[mtl.Comparison, ...]:
    found: dict[int, mtl.Comparison] = {}
    for path in folder.glob(TABLE):
        shots = path.name.partition("-")[0]
        if not shots.isdecimal():
            continue
        try:
            found[int(shots)] = mtl.Comparison.from_json(path)
        except (ValueError, OSError):
            damaged.append(path.name)
    return tuple(found[shots] for shots in sorted(found, reverse=True))


def _stages(folder: Path) -> tuple[Stage, ...]:
    paths = sorted(folder.glob(STAGE), key=lambda p: (p.parent.name == "static", p.parent.name, _number(p.name)))
    found = (Stage(path.parent.name, path.name, read_metrics(path)) for path in paths)
    return tuple(stage for stage in found if stage.metrics)


def _number(name: str) -> int:
    first = name.partition("-")[0]
    return int(first) if first.isdecimal() else 0


def _json(path: Path, damaged: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except (ValueError, OSError):
        damaged.append(path.name)
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
