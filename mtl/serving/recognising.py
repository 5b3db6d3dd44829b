"""Tasks of one network, recognised at the price of one look at the network rather than one per task."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

from mtl.fewshot import AdaptedTask
from mtl.fewshot.adapted_task import task_of
from mtl.fewshot.saved_backbones import check_backbone
from mtl.fewshot.task_files import read_task_file
from mtl.networks.backbones import Backbone
from mtl.networks.backbones.identity import differences

_ELSEWHERE = ("load", "is_folder")  # how a file finds the network, which does not say what it is


class Recogniser:
    """Reads task files of one network, and refuses those of another.

    Args:
        backbone: whose weights do not change from now on.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._described: set[str] = set()
        self._copies: weakref.WeakSet[Backbone] = weakref.WeakSet()

    def read(self, path: Path) -> AdaptedTask:
        """The task in a file.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, or of another network.
        """
        file = read_task_file(path)
        described = json.dumps({k: v for k, v in file.backbone.items() if k not in _ELSEWHERE}, sort_keys=True)
        if described not in self._described:
            check_backbone(file.path, file.backbone, self._backbone)
            self._described.add(described)
        return task_of(file, self._backbone)

    def own(self, name: str, task: AdaptedTask) -> AdaptedTask:
        """The task over this very network.

        Raises:
            ValueError: it is of another one.
        """
        other, backbone = task.backbone, self._backbone
        if other is backbone:
            return task
        if other not in self._copies:
            if changed := differences(other.identity(), backbone.identity()):
                raise ValueError(
                    f"task {name!r} is of the backbone {other.name!r}, and {backbone.name!r} differs from it "
                    f"({'; '.join(changed)}); serve it over the network that it was adapted on"
                )
            self._copies.add(other)
        return AdaptedTask(**{**vars(task), "backbone": backbone})
