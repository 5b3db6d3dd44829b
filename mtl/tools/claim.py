"""A folder belongs to one run: ``run.json`` holds the run's identity, and a run of another identity is refused."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtl.tools.files import remove_drafts, write_whole
from mtl.tools.identity import as_json, differences, list_differences

RUN = "run.json"
KIND = "an mtl run"
PACKAGES = ("mtl", "torch", "timm", "transformers", "accelerate")  # noted for people; other versions go on


def is_claimed(folder: str | Path, identity: Mapping[str, Any], leftovers: Sequence[str] = ()) -> bool:
    """Whether the folder belongs to the run of this identity. Nothing is written.

    Args:
        identity: all that the run depends on, as JSON holds it; see :class:`~mtl.episode.Identified`.
        leftovers: names of what such a run leaves, which must not be there before it has the folder.

    Raises:
        ValueError: the folder belongs to another run, which the message compares with this one; ``run.json`` is
            damaged; or there are leftovers of a run that did not note what it depends on.
    """
    folder = Path(folder)
    saved = _read(folder / RUN)
    if saved is None:
        if found := [name for name in leftovers if (folder / name).exists()]:
            raise ValueError(
                f"{folder} holds {', '.join(found)} and no {RUN}, which says of which run they are: they would be "
                "replaced; choose another folder (another --out), or move them elsewhere"
            )
        return False
    check_same(folder, saved, identity)
    return True


def claim(folder: str | Path, identity: Mapping[str, Any], leftovers: Sequence[str] = ()) -> None:
    """Give the folder to the run of this identity, for good. Hold it by a :func:`~mtl.tools.lock.folder_lock`.

    Raises:
        ValueError: see :func:`is_claimed`; nothing was written.
        OSError: ``run.json`` could not be written.
    """
    claimed = is_claimed(folder, identity, leftovers)
    remove_drafts(Path(folder) / RUN)
    if claimed:
        return
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    record = {"kind": KIND, "identity": as_json(identity), "begun": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_whole(Path(folder) / RUN, (json.dumps(record | {"versions": versions}, indent=2) + "\n").encode())


def is_begun(folder: str | Path) -> bool:
    """Whether some run has the folder. What it did not write at its start is nobody else's to add."""
    return (Path(folder) / RUN).exists()


def check_same(folder: str | Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a run of another identity.

    Raises:
        ValueError: naming each setting that differs, with both values, and the way out.
    """
    if changed := differences(saved, as_json(now)):
        raise ValueError(
            f"{folder} holds a run with other settings ({list_differences(changed)}); "
            "go back to those, or give this run another folder (another --out)"
        )


def _read(path: Path) -> dict[str, Any] | None:
    """The identity in a file; None without one."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # UnicodeDecodeError is one
        found = error
    if isinstance(found, dict) and found.get("kind") == KIND and isinstance(found.get("identity"), dict):
        return found["identity"]
    raise ValueError(
        f"{path} is damaged, or of another program: it does not say what this run depends on; bring it back from a "
        "copy, or give this run another folder (another --out)"
    )
