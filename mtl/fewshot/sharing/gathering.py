"""What is shared of a learner, a task or a run: a few files without paths of this machine, and facts for a card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from mtl.fewshot.adapted import Adapted
from mtl.fewshot.adapted_task import AdaptedTask
from mtl.fewshot.hub_files import TASK
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.saved_backbones import without_places
from mtl.fewshot.saved_files import CONFIG, WEIGHTS, is_complete, read_files, write_files
from mtl.fewshot.saving import save_pretrained
from mtl.fewshot.task_files import for_sharing, read_task_file
from mtl.tools.comparison import Comparison
from mtl.tools.json_files import read_json

Shareable = MetaLearner | Adapted | AdaptedTask | str | Path
SETTINGS = "training.json"  # settings of the run, for ``mtl train --config``
PICTURE = "accuracy.png"
RESULTS = ("final", "best")  # where a training leaves its learner


@dataclass(frozen=True)
class Gathered:
    """Everything that goes on the hub but the card, and what the card tells.

    Args:
        kind: what it is.
        files: contents by name.
        backbone: what :meth:`Backbone.spec` said of the network.
        facts: the config of a learner, or the description of a task.
        tables: the comparisons of the run, one per number of shots.
        settings: of the run.
        versions: of the packages that it was made with.
    """

    kind: Literal["generator", "task"]
    files: Mapping[str, bytes]
    backbone: Mapping[str, Any]
    facts: Mapping[str, Any]
    tables: tuple[Comparison, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def gather(source: Shareable) -> Gathered:
    """Collect what is shared of a learner, an adapted task, a file or folder of one, or the folder of a run.

    Raises:
        FileNotFoundError: there is nothing, or nothing that can be shared.
        ValueError: it is damaged, or cannot be saved.
    """
    if isinstance(source, Adapted):
        source = source.task()
    if isinstance(source, MetaLearner | AdaptedTask):
        with tempfile.TemporaryDirectory() as folder:
            if isinstance(source, AdaptedTask):
                source.save(path := Path(folder, TASK))
                return _task(path)
            save_pretrained(source, folder)
            return _learner(Path(folder))
    path = Path(source)
    if path.is_file():
        return _task(path)
    if is_complete(path):
        return _learner(path)
    return _run(path)


def _task(path: Path) -> Gathered:
    file = read_task_file(path)
    versions = {"mtl": str(file.described["facts"].get("mtl", version("mtl")))}
    return Gathered("task", {TASK: for_sharing(path)}, file.backbone, file.described, versions=versions)


def _learner(folder: Path) -> Gathered:
    config, state = read_files(folder)
    spec = without_places(config["backbone"])
    with tempfile.TemporaryDirectory() as copy:
        write_files(Path(copy), config | {"backbone": spec}, state)
        files = {name: Path(copy, name).read_bytes() for name in (CONFIG, WEIGHTS)}
    return Gathered("generator", files, spec, config, versions={"mtl": str(config.get("mtl", "0.1.0"))})


def _run(folder: Path) -> Gathered:
    """Of ``mtl train``; its pictures of examples and its data are left out."""
    found = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    settings = found.get("config", {})
    places = [folder / str(settings.get("generator", "")) / "final", *(folder / name for name in RESULTS)]
    learner = next((_learner(place) for place in places if is_complete(place)), None)
    if learner is None:
        raise FileNotFoundError(
            f"{folder} is neither a finished run, a saved learner nor a file of an adapted task; give one of these"
        )
    shots = settings.get("shots", [])
    tables = tuple(Comparison.from_json(p) for s in shots if (p := folder / f"{s}-shot.json").is_file())
    files = dict(learner.files)
    for name in (*(f"{s}-shot.csv" for s in shots), PICTURE):
        if (folder / name).is_file():
            files[name] = (folder / name).read_bytes()
    versions = found.get("versions", learner.versions)
    if settings:
        settings = _without_places(settings)
        files[SETTINGS] = (json.dumps({"config": settings, "versions": versions}, indent=2) + "\n").encode()
    return Gathered("generator", files, learner.backbone, learner.facts, tables, settings, versions)


def _without_places(value: Any) -> Any:
    """Settings with the last part alone of every path that leads to this machine's own places."""
    if isinstance(value, Mapping):
        return {name: _without_places(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_without_places(v) for v in value]
    return Path(value).name if isinstance(value, str) and (Path(value).is_absolute() or value[:1] in "~.") else value
