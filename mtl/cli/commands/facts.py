"""Facts of an adapted task, a generator, a run or a network, by name; nothing but a network is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mtl
from mtl.cli.commands.closing import pictures_of
from mtl.cli.training.run_folder import CONFIG, FINISHED, command_of
from mtl.fewshot.calibration import Calibration
from mtl.fewshot.saved_files import KEYS, read_files
from mtl.fewshot.task_files import read_task_file
from mtl.tools.json_files import read_json

SHORT = 12  # characters of a fingerprint that tell networks apart


def facts_of(what: str) -> dict[str, Any]:
    """Facts of whatever it is.

    Raises:
        ValueError: it is neither a file, a folder nor a network that is known.
        OSError: the weights of a network are not there.
    """
    path = Path(what)
    if path.is_file():
        return of_task(path)
    if path.is_dir() and (path / CONFIG).is_file():
        content = read_json(path / CONFIG, {})
        if KEYS & content.keys() > {"generator", "head"}:
            return of_generator(path)
        if "config" in content:
            return of_run(path, content)
    elif path.is_dir() or path.suffix == ".mtl" or what.startswith(("./", "/", "../")):
        raise ValueError(f"{what}: no adapted task (.mtl), generator or run is there, nor a network (config.json)")
    return of_network(what)


def of_task(path: Path) -> dict[str, Any]:
    """Of the file of an adapted task; the network is not loaded."""
    file = read_task_file(path)
    task, facts = file.described, file.described["facts"]
    numbers = sum(value.numel() for value in file.state.values())
    return {
        "adapted task": path,
        "size": f"{path.stat().st_size / 1000:,.0f} kB, {numbers:,} numbers in {len(task['parts'])} parts",
        "classes": _some(task["class_names"]) or task["ways"],
        "examples": facts.get("examples"),
        "generator": facts.get("generator"),
        "chosen": ", ".join(f"{name} {weight}" for name, weight in facts.get("choice", {}).items()),
        "temperature": _temperature(task.get("calibration")),
        **_network_of(file.backbone),
        "written by": f"mtl {facts.get('mtl')}",
    }


def of_generator(folder: Path) -> dict[str, Any]:
    """Of the folder of a saved generator; the network is not loaded."""
    config, state = read_files(folder)
    inner = config["inner"]
    return {
        "generator": folder,
        "kind": config["generator"]["kind"],
        "size": f"{sum(value.numel() for value in state.values()):,} numbers",
        "options": ", ".join(f"{k}={v}" for k, v in config["generator"]["options"].items()),
        "head": config["head"]["kind"],
        "inner steps": inner["inner_steps"],
        **_network_of(config["backbone"]),
        "written by": f"mtl {config.get('mtl', '0.1.0')}",
    }


def of_run(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Of the folder of a training run."""
    settings = content["config"]
    named = ("data", "backbone", "generator", "ways", "shots", "sites", "levels", "inner_steps", "seed")
    generator = folder / str(settings.get("generator") or "channelwise") / "final"
    return {
        "run": folder,
        "state": "finished" if (folder / FINISHED).is_file() else "not finished: the same command continues it",
        **{name.replace("_", " "): _plain(settings.get(name)) for name in named},
        "versions": ", ".join(f"{k} {v}" for k, v in content.get("versions", {}).items()),
        "final": generator if generator.is_dir() else "",
        "tables": ", ".join(map(str, sorted(folder.glob("*-shot.csv")))),
        "pictures": ", ".join(map(str, pictures_of(folder))),
        "again": f"{command_of(content)} --config {folder}",
    }


def of_network(name: str) -> dict[str, Any]:
    """Of a network by name or folder, which is loaded."""
    backbone = mtl.load_backbone(name, sites="none", levels="all")
    levels = backbone.levels
    stages = len({level.stage for level in levels})
    inside = mtl.load_backbone(name, sites="norm")
    return {
        "network": name,
        "reads": backbone.adapter.reads,
        "parameters": f"{sum(p.numel() for p in backbone.model.parameters()):,}",
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "width": f"{inside.width} as the network pools, {backbone.width:,} over all levels",
        "levels": f"{len(levels)} of {stages} stages: {_some([level.name for level in levels])}",
        "modulated": f"{inside.modulation_width:,} scales and as many shifts with --sites norm",
        "fingerprint": backbone.fingerprint()[:SHORT],
    }


def _network_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    load = spec["load"]
    given = ", ".join(f"{k}={v}" for k, v in load.items() if k != "name" and v not in (None, 0, True))
    width = f"{spec['width']:,}" if "width" in spec else ""
    return {"network": load["name"], "loaded with": given, "width": width, "fingerprint": spec["fingerprint"][:SHORT]}


def _temperature(content: Mapping[str, Any] | None) -> str:
    if content is None:
        return ""
    calibration = Calibration.from_json(content)
    if not calibration.left_out:
        return "1: a class has a single example, so none was left out to judge by"
    return f"{calibration.temperature:.3g}, from {calibration.left_out} left-out examples"


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
