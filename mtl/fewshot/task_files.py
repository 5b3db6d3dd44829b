"""The file of one adapted task: safetensors, with all that is not a tensor as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mtl.fewshot.saved_backbones import check_backbone, relocated, without_places
from mtl.fewshot.saved_files import from_bytes
from mtl.networks.backbones import Backbone
from mtl.tools.files import write_whole
from mtl.tools.identity import digest
from mtl.tools.json_files import check_fields, parse_json

FORMAT = 1  # one more when older versions of mtl would misread a file
HEADER = "mtl"  # key of the description in the metadata of safetensors
LARGEST_HEADER = 1 << 24  # bytes; a description has some thousand
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

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse another network.

        Raises:
            ValueError: one line, with each difference.
        """
        check_backbone(self.path, self.backbone, backbone)


def write_task_file(
    path: Path, spec: dict[str, Any], described: Mapping[str, Any], state: Mapping[str, Tensor], half: bool
) -> None:
    """Write the file, whole or not at all; see :meth:`AdaptedTask.save`."""
    if path.exists() and not _is_task_file(path):
        raise FileExistsError(f"{path} is not an adapted task, and would be replaced; save to another path")
    dtype = torch.float16 if half else torch.float32
    stored = {name: value.detach().to("cpu", dtype).contiguous().clone() for name, value in state.items()}
    if not all(bool(value.isfinite().all()) for value in stored.values()):
        way_out = "save it without half=True" if half else "predict() says what is wrong"
        raise ValueError(f"{path}: the task is not finite{' in float16' if half else ''}; {way_out}")
    content = {
        "format": FORMAT,
        "mtl": version("mtl"),
        "backbone": relocated(spec, path.parent),
        "task": described,
        "tensors": digest(stored),
    }
    write_whole(path, _sealed(content, stored))


def for_sharing(path: Path) -> bytes:
    """The contents of a file with names in the place of this machine's paths; raises what :func:`read_task_file` does.

    Its numbers stay as they are stored, in half precision too.
    """
    contents, backbone = path.read_bytes(), read_task_file(path).backbone
    content = {k: v for k, v in _description(contents, path).items() if k != "digest"}
    return _sealed(content | {"backbone": without_places(backbone)}, from_bytes(contents, path))


def _sealed(content: Mapping[str, Any], stored: Mapping[str, Tensor]) -> bytes:
    """A file, with a digest of its description."""
    whole: dict[str, Any] = json.loads(json.dumps(content))
    return save(dict(stored), {HEADER: json.dumps(whole | {"digest": digest(whole)})})


def read_task_file(path: Path) -> TaskFile:
    """Read and check a file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, of a later version, or something else; names it.
    """
    contents = path.read_bytes()
    content = _description(contents, path)
    if content.get("format") != FORMAT:
        written = f"format {content.get('format')!r} of mtl {content.get('mtl')}"
        raise ValueError(f"{path} has {written}, and this is mtl {version('mtl')}; update mtl, or save the task again")
    if content.pop("digest", None) != digest(content):
        raise ValueError(f"{path} is not as it was saved: its digest differs; bring it back from a copy")
    check_fields(content, path, FIELDS)
    state = from_bytes(contents, path)
    if digest(state) != content["tensors"]:
        raise ValueError(f"{path} is damaged: its tensors differ from what was saved; bring it back from a copy")
    described, backbone = content["task"], content["backbone"]
    _check_shapes(path, described, backbone, state)
    return TaskFile(path, backbone, described, {name: value.float() for name, value in state.items()})


def _description(contents: bytes, path: Path) -> dict[str, Any]:
    """The JSON in the header; files come from anybody."""
    size = int.from_bytes(contents[:8], "little")
    if len(contents) < 8 or size > min(len(contents) - 8, LARGEST_HEADER):
        raise ValueError(
            f"{path} is not an adapted task, or is cut off: {len(contents):,} bytes; is it the right file?"
        )
    header = parse_json(contents[8 : 8 + size], path).get("__metadata__")
    if not isinstance(header, dict) or HEADER not in header:
        raise ValueError(f"{path} is not an adapted task: its header has no {HEADER!r}; is it the right file?")
    return parse_json(header[HEADER].encode(), path)


def _is_task_file(path: Path) -> bool:
    try:
        _description(path.read_bytes(), path)
    except (ValueError, OSError):
        return False
    return True


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
