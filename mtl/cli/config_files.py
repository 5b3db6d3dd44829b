"""Options from a file, ``--config run.yaml``: what a person wrote, or the ``config.json`` of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
import yaml

from mtl.tools.hints import did_you_mean

RUN = "config.json"  # in the folder of a run: its settings under "config", and versions


def words_of(path: str | Path, config: type) -> list[str]:
    """Words of a command line that say the same as a file.

    Args:
        path: of yaml or json, with options by their names on the command line (``last-k`` or ``last_k``); or the folder
            of a run, in which an option of another command counts only where it is not at its default.
        config: dataclass of the options.

    Raises:
        OSError: the file is not there.
        ValueError: it is no such file, or has a key that is no option; one line.
    """
    file = Path(path) / RUN if Path(path).is_dir() else Path(path)
    settings, unsaid = _read(file)
    flags, parts = _names(config)
    words: list[str] = []
    for key, value in _leaves(settings, parts):
        name = key.replace("-", "_")
        if name not in flags and name in unsaid and unsaid[name] == value:
            continue  # of another command, which nobody told this
        if name not in flags:
            raise ValueError(f"{file}: {key} is no option of this command{_meant(name, flags)}")
        words += _words(flags[name], value, f"{file}: {key}")
    return words


def _read(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Settings, and of a run its defaults."""
    if not file.is_file():
        raise FileNotFoundError(f"--config {file}: no such file")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is neither yaml nor json: {' '.join(str(error).split())}") from error
    unsaid: Any = {}
    if isinstance(found, Mapping) and isinstance(found.get("config"), Mapping):  # with the versions of a run
        found, unsaid = found["config"], found.get("defaults")
    if not isinstance(found, Mapping):
        raise ValueError(f"{file}: expected options by name, such as 'shots: [5, 1]', but it holds no names")
    return found, unsaid if isinstance(unsaid, Mapping) else {}


def _names(config: type, name: str = "", flag: str = "") -> tuple[dict[str, str], set[str]]:
    """Names that a file may use and the option that each stands for; names of parts, which hold several."""
    hints = get_type_hints(config, include_extras=True)
    flags: dict[str, str] = {}
    parts: set[str] = set()
    for field in fields(config):
        hint, own = hints[field.name], f"{name}{field.name}"
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else [hint]
        if isinstance(kind, type) and is_dataclass(kind):
            flat = tyro.conf.OmitArgPrefixes in marks
            inner = _names(kind, f"{own}.", flag if flat else f"{flag}{field.name}.")
            flags, parts = flags | inner[0], parts | inner[1] | {own}
        elif tyro.conf.Positional not in marks:
            typed = f"{flag}{field.name}"
            flags |= dict.fromkeys((own, typed), f"--{typed}".replace("_", "-"))
    return flags, parts


def _leaves(settings: Mapping[str, Any], parts: set[str], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names with their dots, and values."""
    for key, value in settings.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and name.replace("-", "_") in parts:
            yield from _leaves(value, parts, f"{name}.")
        else:
            yield name, value


def _words(flag: str, value: Any, place: str) -> list[str]:
    if isinstance(value, bool):
        before, dot, last = flag.removeprefix("--").rpartition(".")
        return [flag if value else f"--{before}{dot}no-{last}"]
    if isinstance(value, list):
        if any(isinstance(v, list | Mapping) for v in value):
            raise ValueError(f"{place}: expected a list of plain values")
        return [flag, *map(str, value)]
    if isinstance(value, Mapping):
        raise ValueError(f"{place}: expected one value or a list, but it holds {', '.join(map(str, value))}")
    return [f"{flag}={value}"]


def _meant(name: str, flags: Mapping[str, str]) -> str:
    meant = did_you_mean(name, flags, cutoff=0.5)
    return f" ({meant})" if meant else "; --help lists them"
