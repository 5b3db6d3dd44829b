"""The file of one adapted task: safetensors, with all that is not a tensor as JSON in its header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.fewshot.described_files import FileKind
from mtl.fewshot.saved_backbones import relocated, without_places

HEADER = "mtl"
FIELDS = {
    "backbone.load": dict,
    "backbone.fingerprint": str,
    "backbone.width": int,
    "backbone.modulation_width": int,
    "task.ways": int,
    "task.class_names": list,
    "task.parts": list,
    "task.facts": dict,
    "tensors": str,
}
TASK = FileKind(HEADER, 1, "is not an adapted task", "adapted.save", FIELDS)


@dataclass(frozen=True)
class TaskFile:
    """What a file says.

    Args:
        path: where it is.
        backbone: what :meth:`Backbone.spec` said of the network when it was saved.
        described: the task, without its tensors.
        state: its tensors by name, in float32 on the CPU.
    """

    path: Path
    backbone: dict[str, Any]
    described: dict[str, Any]
    state: dict[str, Tensor]


def write_task_file(
    path: Path, spec: dict[str, Any], described: Mapping[str, Any], state: Mapping[str, Tensor], half: bool
) -> None:
    """Write the file, whole or not at all; see :meth:`AdaptedTask.save`."""
    dtype = torch.float16 if half else torch.float32
    stored = {name: value.detach().to("cpu", dtype).contiguous().clone() for name, value in state.items()}
    if not all(bool(value.isfinite().all()) for value in stored.values()):
        way_out = "save it without half=True" if half else "predict() says what is wrong"
        raise ValueError(f"{path}: the task is not finite{' in float16' if half else ''}; {way_out}")
    TASK.write(path, {"backbone": relocated(spec, path.parent), "task": described}, stored)


def for_sharing(path: Path) -> bytes:
    """The contents of a file with names in the place of this machine's paths; raises what :func:`read_task_file` does.

    Its numbers stay as they are stored, in half precision too.
    """
    content, stored = _read(path)
    return TASK.sealed(content | {"backbone": without_places(content["backbone"])}, stored)


def read_task_file(path: Path) -> TaskFile:
    """Read and check a file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, of a later version, or something else; names it.
    """
    content, stored = _read(path)
    return TaskFile(path, content["backbone"], content["task"], {name: v.float() for name, v in stored.items()})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors as they are stored."""
    content, stored = TASK.read(path)
    _check_shapes(path, content["task"], content["backbone"], stored)
    return content, stored


def _check_shapes(path: Path, task: dict[str, Any], backbone: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of such a task."""
    ways, width, sites = task["ways"], backbone["width"], backbone["modulation_width"]
    allowed = {
        "weight": (ways, width), "bias": (ways,), "scale": (sites,), "shift": (sites,),
        "feature_scale": (width,), "feature_shift": (width,),
    }  # fmt: skip
    expected = {f"parts.{i}.{k}": shape for i in range(len(task["parts"])) for k, shape in allowed.items()}
    expected |= {"standard.mean": (width,), "standard.inv_std": (width,)}
    wrong = [k for k, v in state.items() if tuple(v.shape) != expected.get(k) or not v.is_floating_point()]
    pairs = [("weight", "bias"), ("scale", "shift"), ("feature_scale", "feature_shift")]
    for i, part in enumerate(task["parts"]):
        names = {k for k in allowed if f"parts.{i}.{k}" in state}
        wrong += [f"parts.{i}.{a}" for a, b in pairs if (a in names) != (b in names)]
        wrong += (
            [] if "weight" in names and isinstance(part, dict) and type(part.get("unit")) is bool else [f"parts.{i}"]
        )
    wrong += ["standard"] if ("standard.mean" in state) != ("standard.inv_std" in state) else []
    wrong += ["parts"] if not task["parts"] else []
    wrong += ["class_names"] if len(task["class_names"]) not in (0, ways) else []
    if wrong:
        raise ValueError(f"{path} is damaged: {', '.join(wrong[:3])} are not those of {ways} classes on its network")
