"""An adapted task as a plain checkpoint: a folder that timm or transformers loads without this package."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from mtl.backbones import EMBEDDED, Backbone, HFImages, HFText, TimmImages
from mtl.backbones.timm_networks import TIMM_POOLING
from mtl.data.glyph_tasks import glyph_backbone_info
from mtl.episode import Inputs
from mtl.files import replacing_folder
from mtl.heads import Linear
from mtl.learner import Adapted
from mtl.merging import Merged

_SEPARATELY = "adapted.merge() gives network and classifier separately"
# What load_backbone takes for itself; the rest are arguments of the network. The export is float32 on the CPU.
_OURS = frozenset({"name", "sites", "last_k", "pretrained", "checkpoint", "pooling", "seed", "dtype", "device"})


@dataclass(frozen=True)
class Parity:
    """How close the checkpoint, loaded again, is to the learner.

    Args:
        examples: number of inputs compared.
        agreeing: how many get the same class from both. A tie closer than ``tolerance`` may fall either way.
        error: largest difference of logits after one positive factor per example, relative to their spread.
        tolerance: what ``error`` may be; coarser where the learner itself rounds coarsely.
    """

    examples: int
    agreeing: int
    error: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.agreeing} of {self.examples} predictions agree, logits to {self.error:.1e} of their spread "
            f"(allowed {self.tolerance:.0e})"
        )


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Args:
        folder: where it lies.
        load: the one line of Python that loads it, from inside the folder.
        class_names: in the order of the classifier's outputs.
        parity: measured on the files in the folder.
        notes: what is good to know about the checkpoint; also in its config.
    """

    folder: Path
    load: str
    class_names: tuple[str, ...]
    parity: Parity
    notes: tuple[str, ...]


@torch.no_grad()
def export(
    adapted: Adapted,
    folder: str | Path,
    task: int = 0,
    class_names: Sequence[str] | None = None,
    inputs: Inputs | None = None,
) -> Exported:
    """Write one adapted task as a plain checkpoint, load it again and compare.

    - timm: ``model.safetensors`` with a classifier of ``ways`` outputs, and timm's own ``config.json``;
      ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads it, as does ``checkpoint_path=``.
    - transformers: what ``AutoModel.from_pretrained`` loads, with its tokenizer or image processor where there is one;
      ``head.safetensors`` with the classifier's weight ``(ways, width)`` and bias ``(ways,)``; and ``mtl.json``.

    Predictions are those of ``adapted``. Logits are too, up to one positive factor per example (the length of the
    features, where the head normalises them) that is one on average over the support set.

    Args:
        folder: must not exist, or be empty. It appears whole, after the comparison, or not at all.
        task: which of the adapted tasks.
        class_names: as many as classes; by default the names that were adapted to, else ``"0"``, ``"1"``, ...
        inputs: what to compare on, ``(n, ...)`` or tokens by name; by default the support set.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: a plain network of this architecture cannot hold the modulation or the classifier.
        RuntimeError: the checkpoint, loaded again, predicts something else.
    """
    folder = _free(Path(folder))
    names = _names(adapted, class_names)
    compare_on = _pick(adapted.support.inputs, task) if inputs is None else inputs
    plain = _plain(adapted, task)
    write = _write_timm if isinstance(plain.backbone.adapter, TimmImages) else _write_transformers
    # Building networks draws random weights; the caller's random numbers stay what they would have been.
    with replacing_folder(folder) as draft, torch.random.fork_rng(devices=[]):
        written = write(plain, names, draft)
        parity = _parity(adapted, task, compare_on, written.logits)
        notes = _notes(adapted)
        facts = {"version": version("mtl"), "backbone": plain.backbone.name, "load": written.load}
        facts |= {"class_names": names, "notes": notes, "parity": asdict(parity), **written.facts}
        (draft / written.file).write_text(json.dumps(written.config | {"mtl": facts}, indent=2) + "\n")
    return Exported(folder, written.load, names, parity, notes)


@dataclass(frozen=True)
class _Plain:
    """A task without this package: a network on the CPU, and a linear classifier on its pooled features."""

    backbone: Backbone
    model: nn.Module
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Written:
    """What a writer left in the draft folder, and the logits of what the public loader makes of it."""

    load: str
    file: str  # the config file, in the folder
    config: dict[str, Any]  # what is in it, but for "mtl"
    facts: dict[str, Any]  # more for "mtl"
    logits: Callable[[Inputs], Tensor]


def _plain(adapted: Adapted, task: int) -> _Plain:
    merged, weight, bias = adapted.merge(task)
    backbone = adapted.learner.backbone
    _require_whole(backbone, merged)
    weight, bias = weight.cpu().float(), bias.cpu().float()
    inputs = _pick(adapted.support.inputs, task)
    found = backbone.adapter.features(merged.model, _like(inputs, merged.model)).float() @ weight.T + bias
    # A head that normalises has logits of another size than its plain classifier. One common factor changes no
    # prediction and makes the softmax of the checkpoint mean about what the learner's does.
    factor = _factors(found, _reference(adapted, task, inputs)).mean()
    return _Plain(backbone, merged.model, weight / factor, bias / factor)


def _require_whole(backbone: Backbone, merged: Merged) -> None:
    if merged.unmerged:
        more = f" and {len(merged.unmerged) - 3} more" if len(merged.unmerged) > 3 else ""
        raise ValueError(
            f"{backbone.name} has no plain checkpoint that predicts the same: {'; '.join(merged.unmerged[:3])}{more}. "
            "Keep predicting with the learner, pickle the network of adapted.merge() whole, or train a generator for "
            "sites that all have a bias"
        )


def _notes(adapted: Adapted) -> tuple[str, ...]:
    notes = []
    if not isinstance(head := adapted.learner.head, Linear):
        notes.append(
            f"the {type(head).__name__} head normalises features and a plain classifier does not: predictions are the "
            "same, probabilities differ by a temperature per example"
        )
    if _stored_low(adapted):
        notes.append("the backbone ran in half precision, the checkpoint is float32: near ties may fall otherwise")
    return tuple(notes)


# --- timm ------------------------------------------------------------------------------------------------------------


def _write_timm(plain: _Plain, names: Sequence[str], draft: Path) -> _Written:
    architecture, args = _timm_architecture(plain.backbone)
    adapter = plain.backbone.adapter
    assert isinstance(adapter, TimmImages)
    model = _timm_model(plain, architecture, args)
    save_for_hf(model, str(draft), {"label_names": list(names)}, model_args=args, safe_serialization=True)
    create = {"num_classes": len(names), **args}
    again = timm.create_model(architecture, checkpoint_path=str(draft / "model.safetensors"), **create).eval()
    keywords = "".join(f", {k}={v!r}" for k, v in create.items())
    config = json.loads((draft / "config.json").read_text())
    # The tag and the larger test size are those of the weights that these came from.
    kept = {k: v for k, v in config["pretrained_cfg"].items() if k not in ("tag", "pool_size") and "test" not in k}
    return _Written(
        f'timm.create_model({architecture!r}, checkpoint_path="model.safetensors"{keywords})',
        "config.json",
        config | {"pretrained_cfg": kept | adapter.config},
        {"architecture": architecture, "model_args": args, "preprocessing": adapter.config},
        lambda inputs: again(_like(inputs, again)),
    )


def _timm_architecture(backbone: Backbone) -> tuple[str, dict[str, Any]]:
    """The name in timm's registry, and the JSON-able arguments that the network was built with."""
    load = backbone.spec()["load"]
    args = {k: v for k, v in load.items() if k not in _OURS | {"pretrained_cfg_overlay"}}
    if load["pooling"] is not None:
        args["global_pool"] = TIMM_POOLING.get(load["pooling"], load["pooling"])
    if load["name"] == EMBEDDED:
        info = glyph_backbone_info()
        return info["model"], {k: v for k, v in info["kwargs"].items() if k != "num_classes"} | args
    folder = Path(load["name"])
    if folder.is_dir():
        config = json.loads((folder / "config.json").read_text())
        known = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
        return config["architecture"], known | args
    return load["name"].removeprefix("timm/"), args


def _timm_model(plain: _Plain, architecture: str, args: dict[str, Any]) -> nn.Module:
    """What timm builds with a classifier, holding the merged weights."""
    model: Any = timm.create_model(architecture, num_classes=len(plain.bias), **args).eval()
    classifier = model.get_classifier()
    prefix = next((name for name, module in model.named_modules() if module is classifier), "")
    wanted = {f"{prefix}.weight", f"{prefix}.bias"}
    state = {**plain.model.state_dict(), f"{prefix}.weight": plain.weight, f"{prefix}.bias": plain.bias}
    own = model.state_dict()
    if not isinstance(classifier, nn.Linear) or not wanted <= own.keys():
        raise ValueError(
            f"{architecture} ends in {type(classifier).__name__}, not in a Linear layer with a bias on its "
            f"{plain.backbone.width} pooled features, so no plain checkpoint can hold it; {_SEPARATELY}"
        )
    _require_same_keys(architecture, own, state)
    model.load_state_dict(state)
    return model


def _require_same_keys(architecture: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    other = own.keys() ^ state.keys() | {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}
    if other:
        raise ValueError(
            f"{architecture} with a classifier differs from {architecture} without one in {_some(other)}, so features "
            f"and classifier do not fit in one plain checkpoint; {_SEPARATELY}"
        )


# --- transformers ----------------------------------------------------------------------------------------------------


def _write_transformers(plain: _Plain, names: Sequence[str], draft: Path) -> _Written:
    adapter, model = plain.backbone.adapter, plain.model
    assert isinstance(adapter, HFImages | HFText)
    assert isinstance(model, transformers.PreTrainedModel)
    model.save_pretrained(draft)
    save_file({"weight": plain.weight.contiguous(), "bias": plain.bias.contiguous()}, draft / "head.safetensors")
    processor = _processor(adapter)
    if processor is not None:
        processor.save_pretrained(draft)
    again = _auto_model(draft)
    head = load_file(draft / "head.safetensors")
    facts = {
        "architecture": type(model).__name__,
        "model_args": {},
        "preprocessing": None if processor is None else type(processor).__name__,
        "features": f"{adapter.pooling} of last_hidden_state over the positions that attention_mask keeps",
        "logits": "features @ weight.T + bias, both in head.safetensors",
    }
    return _Written(
        'transformers.AutoModel.from_pretrained(".")',
        "mtl.json",
        {"num_classes": len(names)},
        facts,
        lambda inputs: adapter.features(again, _like(inputs, again)).float() @ head["weight"].T + head["bias"],
    )


def _processor(adapter: HFImages | HFText) -> Any:
    """Image processor or tokenizer; None for a backbone that takes tensors only."""
    try:
        return adapter.processor if isinstance(adapter, HFImages) else adapter.tokenizer
    except ValueError:
        return None


def _auto_model(folder: Path) -> nn.Module:
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    # transformers fills missing weights with random ones and goes on; poolers are not used here.
    lost = [k for k in info["missing_keys"] if "pooler" not in k.split(".")] + list(info["unexpected_keys"])
    if lost:
        raise ValueError(
            f"transformers.AutoModel builds a {type(model).__name__}, which does not take {_some(lost)}, so this "
            f"network has no plain checkpoint; {_SEPARATELY}"
        )
    return model.eval()


# --- comparison ------------------------------------------------------------------------------------------------------


def _parity(adapted: Adapted, task: int, inputs: Inputs, logits: Callable[[Inputs], Tensor]) -> Parity:
    reference, found = _reference(adapted, task, inputs), logits(inputs).float()
    factors = _factors(found, reference)
    # Where classes differ by less than a thousandth of the logits, what remains is float32's own rounding.
    spread = (found.amax(1) - found.amin(1)).max().clamp_min(1e-3 * found.abs().max())
    error = float((found - factors * reference).abs().max() / spread) if bool((factors > 0).all()) else math.inf
    agreeing = int((found.argmax(1) == reference.argmax(1)).sum())
    parity = Parity(len(found), agreeing, error, _tolerance(adapted))
    if not error <= parity.tolerance:
        raise RuntimeError(
            f"the exported checkpoint, loaded again, is not the learner: {parity}. Nothing was written; "
            f"keep predicting with the learner and report {adapted.learner.backbone.name}"
        )
    return parity


def _reference(adapted: Adapted, task: int, inputs: Inputs) -> Tensor:
    """The learner's logits ``(n, ways)`` of one task, on the CPU."""
    tasks = adapted.support.labels.shape[0]
    repeated = _map(inputs, lambda v: v.unsqueeze(0).expand(tasks, *v.shape))
    return adapted.logits(repeated)[task].cpu().float()


def _factors(found: Tensor, reference: Tensor) -> Tensor:
    """The factor per example, ``(n, 1)``, that brings the reference nearest to what was found."""
    return (found * reference).sum(1, keepdim=True) / reference.square().sum(1, keepdim=True)


def _tolerance(adapted: Adapted) -> float:
    """Rounding is 1e-5 to 1e-3 of the logits' spread (TF32: ten times that); a modulation left out moves all of it."""
    return 0.25 if _stored_low(adapted) else 1e-2 if adapted.learner.device.type == "cpu" else 5e-2


def _stored_low(adapted: Adapted) -> bool:
    return next(adapted.learner.backbone.model.parameters()).dtype in (torch.bfloat16, torch.float16)


# --- small things ----------------------------------------------------------------------------------------------------


def _free(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is already there and would be replaced; remove it or choose another folder")
    return folder


def _names(adapted: Adapted, given: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(given if given is not None else adapted.class_names or map(str, range(adapted.ways)))
    if len(names) != adapted.ways:
        raise ValueError(f"class_names={list(names)}: expected {adapted.ways} names, one per class of the task")
    return names


def _map(inputs: Inputs, f: Callable[[Tensor], Tensor]) -> Inputs:
    return {k: f(v) for k, v in inputs.items()} if isinstance(inputs, dict) else f(inputs)


def _pick(inputs: Inputs, task: int) -> Inputs:
    return _map(inputs, lambda v: v[task])


def _like(inputs: Inputs, model: nn.Module) -> Inputs:
    """To the network's device, and floats to its dtype."""
    like = next(model.parameters())
    return _map(inputs, lambda v: v.to(like) if v.is_floating_point() else v.to(like.device))


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
