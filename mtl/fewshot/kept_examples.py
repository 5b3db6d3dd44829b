"""The examples of a task as a file: what the network made of them, so that the task can be changed another day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtl.episode import READOUT, Examples
from mtl.fewshot.described_files import FileKind
from mtl.fewshot.living import Support
from mtl.fewshot.moments import Moments
from mtl.fewshot.saved_backbones import check_backbone, relocated
from mtl.networks.backbones import Backbone

MOMENTS = ("background.mean", "background.var")
FIELDS = {"format": int, "backbone.load": dict, "names": list, "background": int, "tensors": str}
EXAMPLES = FileKind("mtl.examples", 1, "holds no examples", "adapted.save_examples", FIELDS)


def write_examples(path: Path, backbone: Backbone, support: Support) -> None:
    """Write features and labels of the examples of one task; see :meth:`Adapted.save_examples`."""
    if READOUT not in support.examples.inputs:
        why = "its layers are modulated, so that its examples are no finished features"
        raise ValueError(f"examples on {backbone.name} cannot be kept in a file: {why}; keep the images or texts")
    if strange := [name for name in support.names if not isinstance(name, str | int)]:
        raise ValueError(f"class {strange[0]!r} cannot be kept in a file; expected names that are strings or integers")
    tensors = {"features": support.examples.inputs[READOUT][0], "labels": support.examples.labels[0].int()}
    if support.background is not None:
        tensors |= {"background.mean": support.background.mean, "background.var": support.background.var}
    stored = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    content = {
        "backbone": relocated(backbone.spec(), path.parent),
        "names": list(support.names),
        "background": -1 if support.background is None else support.background.count,
    }
    EXAMPLES.write(path, content, stored)


def load_examples(path: str | Path, backbone: Backbone) -> Support:
    """The examples that :meth:`Adapted.save_examples` wrote: a support set for ``adapt``, of which nothing is computed
    again.

    >>> adapted = mtl.adapt(backbone, mtl.load_examples("lids.examples", backbone))  # doctest: +SKIP
    >>> adapted = adapted.add({"stain": stains})  # doctest: +SKIP

    Args:
        path: of the file.
        backbone: the network that made their features, loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, something else, or of another network.
    """
    path = Path(path)
    content, tensors = EXAMPLES.read(path)
    check_backbone(path, content["backbone"], backbone)
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    n, moments = len(tensors.get("labels", ())), dict.fromkeys(MOMENTS, (backbone.width,))
    if shapes != {"features": (n, backbone.width), "labels": (n,)} | (moments if content["background"] >= 0 else {}):
        raise ValueError(f"{path} is damaged: it holds tensors of the shapes {shapes}; bring it back from a copy")
    return _support(content, tensors, backbone)


def _support(content: dict[str, Any], tensors: dict[str, torch.Tensor], backbone: Backbone) -> Support:
    features, labels = tensors["features"].to(backbone.device), tensors["labels"].to(backbone.device)
    count: int = content["background"]
    background = Moments(count, tensors["background.mean"], tensors["background.var"]) if count >= 0 else None
    examples = Examples({READOUT: features[None]}, labels[None])
    return Support(tuple(content["names"]), examples, None, background)
