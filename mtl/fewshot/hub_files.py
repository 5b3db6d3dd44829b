"""Saved learners and tasks on the Hugging Face hub: two files or one, of one commit, of bounded size, nothing else.

They are what :mod:`mtl.fewshot.saved_files` and :mod:`mtl.fewshot.task_files` read, so a repository chooses no code;
other files in it are never fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mtl.fewshot.saved_files import CONFIG, WEIGHTS, read_config
from mtl.networks.backbones.hub import asking_the_hub, no_answer

TASK = "task.mtl"  # the file of a repository of one task
LARGEST = {".json": 1 << 24, ".safetensors": 1 << 32, ".mtl": 1 << 30}  # bytes of a file that is downloaded
_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>[\w./ -]+\.mtl))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubPlace:
    """Where on the hub.

    Args:
        repo: ``"user/name"``.
        file: of a task, inside it; None for the usual name.
        revision: branch, tag or commit; None for ``main``.
    """

    repo: str
    file: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Found:
    """A saved learner or task on this machine.

    Args:
        path: folder of a learner, or file of a task.
        source: ``"user/name@<commit>"``, which names it for ever; empty for what was here already.
    """

    path: Path
    source: str = ""


def parse_hub_name(name: str) -> HubPlace | None:
    """``"user/name"``, ``"user/name/returns.mtl"``, each with ``@revision`` or without; None for anything else.

    >>> parse_hub_name("ada/leaves@v1")
    HubPlace(repo='ada/leaves', file=None, revision='v1')
    >>> parse_hub_name("/runs/leaves"), parse_hub_name("../leaves"), parse_hub_name("tasks/returns.mtl")
    (None, None, None)

    Raises:
        ValueError: the name of a file that leads out of the repository.
    """
    found = _ID.fullmatch(name)
    if found is None or found["repo"].startswith("mtl/") or (found["repo"].endswith(".mtl") and not found["file"]):
        return None  # names that begin with mtl/ are of what packages carry
    if found["file"] and {"", ".", ".."} & set(found["file"].split("/")):
        raise ValueError(f"{name!r} leads out of its repository; expected a name such as user/name/returns.mtl")
    return HubPlace(found["repo"], found["file"], found["revision"])


def hub_place(source: str | Path, revision: str | None = None) -> HubPlace | None:
    """Where on the hub a source is; None for a path.

    A file or folder that is there wins over a repository of the same name, and a ``Path`` is always a path.

    Raises:
        ValueError: ``revision`` of a path, or another one than after the ``@``.
    """
    place = None if isinstance(source, Path) or Path(source).exists() else parse_hub_name(source)
    if place is None:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for what is on the hub, and {str(source)!r} is a path")
        return None
    if revision is not None and place.revision not in (None, revision):
        raise ValueError(f"{source!r} names a revision, and revision={revision!r} another one; leave one of them out")
    return replace(place, revision=revision or place.revision)


def find_learner(source: str | Path, revision: str | None = None, token: str | None = None) -> Found:
    """A folder with a saved learner: ``source`` itself, or what a repository of the hub has.

    Raises:
        FileNotFoundError: there is no such repository, revision or learner, or no hub and no copy in the cache.
        ValueError: a file is larger than :data:`LARGEST` allows, or the files have no digests.
    """
    if (place := hub_place(source, revision)) is None:
        return Found(Path(source))
    config = _fetch(place, CONFIG, token)
    commit = config.parent.name  # the cache has a folder for each
    _fetch(HubPlace(place.repo, revision=commit), WEIGHTS, token)  # of the same commit, whatever is pushed meanwhile
    if "sha256" not in read_config(config.parent):
        raise ValueError(f"{place.repo} has a {CONFIG} without digests, of mtl 0.1.0; save and push it again")
    return Found(config.parent, f"{place.repo}@{commit}")


def find_task(source: str | Path, revision: str | None = None, token: str | None = None) -> Found:
    """The file of an adapted task, here or on the hub; raises what :func:`find_learner` does."""
    if (place := hub_place(source, revision)) is None:
        return Found(Path(source))
    name = place.file or TASK
    path = _fetch(place, name, token)
    commit = path.parents[name.count("/")].name
    return Found(path, f"{place.repo}/{name}@{commit}")


def _fetch(place: HubPlace, name: str, token: str | None) -> Path:
    """One file of a repository, from the cache where nothing newer is to be had."""
    limit = LARGEST[Path(name).suffix]
    with asking_the_hub(place.repo), _explained(place, name):
        offline = constants.HF_HUB_OFFLINE
        if not offline:
            url = hf_hub_url(place.repo, name, revision=place.revision, endpoint=constants.ENDPOINT)
            _check_size(place, name, get_hf_file_metadata(url, token=token).size, limit)
        path = Path(hf_hub_download(place.repo, name, revision=place.revision, token=token, local_files_only=offline))
    _check_size(place, name, path.stat().st_size, limit)
    return path


def _check_size(place: HubPlace, name: str, size: int | None, limit: int) -> None:
    if size is not None and size > limit:
        raise ValueError(
            f"{name} of {place.repo} has {size:,} bytes, expected {limit:,} at most; if you trust it, download it "
            "yourself and give its folder"
        )


@contextmanager
def _explained(place: HubPlace, name: str) -> Iterator[None]:
    """One line for each thing that a hub may answer."""
    at = f" at {place.revision}" if place.revision else ""
    try:
        yield
    except LocalEntryNotFoundError as error:
        why = no_answer()
        raise FileNotFoundError(
            f"{place.repo}{at} is no folder here, and {why}; check the name, or go online"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{place.repo} is neither a folder here nor a repository on {constants.ENDPOINT} that you may read; check "
            "the name, and pass token= or run 'hf auth login' if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{place.repo} has no revision {place.revision!r}; leave revision= out for main"
        ) from error
    except EntryNotFoundError as error:
        what = "an adapted task" if name.endswith(".mtl") else "a saved learner"
        raise FileNotFoundError(f"{place.repo}{at} on the hub is not {what}: it has no {name}") from error
    except HfHubHTTPError as error:
        answer = " ".join(str(error).split())
        raise OSError(f"{place.repo}{at} could not be read from {constants.ENDPOINT}: {answer}") from error
