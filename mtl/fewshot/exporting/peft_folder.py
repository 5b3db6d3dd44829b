"""An adapter of peft: kilobytes of scale and shift for a network that its users have already."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtl.episode import Inputs
from mtl.fewshot.exporting.plain import Plain, Subject, Written, to_plain
from mtl.fewshot.exporting.preparing import CONFIG, prepare_items
from mtl.fewshot.exporting.quiet import quiet
from mtl.fewshot.exporting.timm_folder import timm_architecture_of, timm_classifier, timm_model
from mtl.fewshot.exporting.transformers_classes import NoSuchClassError, Whole, logits_of, with_classifier
from mtl.fewshot.exporting.transformers_folder import features_line, write_head, write_network
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import HFText, TimmImages
from mtl.networks.modulation import is_norm, plain_copy

_PEFT_TASK = {"AutoModelForSequenceClassification": "SEQ_CLS", "AutoModel": "FEATURE_EXTRACTION"}


@dataclass(frozen=True)
class _Pair:
    """Twice the same network.

    Args:
        base: as its users have it; where the classifier will be are zeros.
        adapted: with modulation and classifier.
        prefix: before the names of the sites.
        head: modules that the adapter saves whole, since they hold the classifier; none where it lies beside.
        make: lines that make ``base``.
        imports: what they need.
        auto: the class of transformers, if it is one of transformers.
    """

    base: Any
    adapted: Any
    prefix: str
    head: tuple[str, ...]
    make: str
    imports: tuple[str, ...]
    auto: str = ""


def write_peft(subject: Subject, draft: Path) -> Written:
    """Write the files into ``draft`` and load them again.

    Raises:
        ImportError: without peft.
        ValueError: no adapter of peft computes the same.
    """
    peft, plain = _peft(), to_plain(subject)
    if not plain.backbone.sites:
        raise ValueError(
            f"{plain.backbone.name} is read with no site inside, so there is nothing to adapt; leave to= out"
        )
    pair = _timm_pair(plain) if isinstance(plain.backbone.adapter, TimmImages) else _transformers_pair(plain, subject)
    config, values = _adapter(peft, plain, pair)
    for name in pair.head:
        values |= _under(f"{name}.modules_to_save.default", pair.adapted.get_submodule(name))
    with quiet():  # of layers that it calls unsupported, and of a name that it takes away
        model = peft.get_peft_model(copy.deepcopy(pair.base), config)
        own = model.base_model.model.state_dict()
        model.base_model.model.load_state_dict({k: v.reshape(own[k].shape) for k, v in values.items()}, strict=False)
        model.peft_config["default"].base_model_name_or_path = _name(plain)
        model.save_pretrained(draft, save_embedding_layers=False)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(pair.base), str(draft)).eval()
    (draft / "README.md").unlink(missing_ok=True)  # a template that nobody has filled in
    return _written(plain, pair, draft, again, str(config.peft_type.value))


def _written(plain: Plain, pair: _Pair, draft: Path, again: Any, kind: str) -> Written:
    load = 'peft.PeftModel.from_pretrained(base, ".")'
    prepared = prepare_items(plain.backbone, draft)
    call = "model(**batch)" if isinstance(plain.backbone.adapter, HFText) else "model(batch)"
    if pair.head:
        imports, last = (), [f"logits = {call}{'.logits' if pair.auto else ''}"]
        logits: Callable[[Inputs], Tensor] = lambda inputs: _logits(again, inputs)  # noqa: E731
    else:
        head = write_head(plain.weight, plain.bias, draft)
        imports = ("safetensors.torch",)
        last = ['head = safetensors.torch.load_file("head.safetensors")']
        last += [features_line(plain, pair.adapted, call), 'logits = features @ head["weight"].T + head["bias"]']
        logits = lambda inputs: plain.backbone.features(inputs, again).float() @ head["weight"].T + head["bias"]  # noqa: E731
    lines = prepared.program(
        ("peft", *imports, *pair.imports), *pair.make.splitlines(), f"model = {load}.eval()", *last
    )
    facts = {"adapter": kind, "head": pair.head or "head.safetensors", "preprocessing": prepared.preprocessing}
    return Written(load, lines, CONFIG, {"num_classes": len(plain.bias)}, facts, logits)


def _logits(model: Any, inputs: Inputs) -> Tensor:
    inputs = inputs.to("cpu", torch.float32)
    return logits_of(model, inputs.raw)


def _adapter(peft: Any, plain: Plain, pair: _Pair) -> tuple[Any, Tensors]:
    """The kind of adapter that computes the modulation exactly, and its values by name."""
    sites = plain.backbone.sites
    layers = {pair.prefix + s.name: pair.base.get_submodule(pair.prefix + s.name) for s in sites}
    widths = [s.width for s in sites]
    scales = dict(zip(layers, plain.modulation.scale[0].split(widths), strict=True))
    shifted = {k for k, v in zip(layers, plain.modulation.shift[0].split(widths), strict=True) if bool(v.any())}
    options: dict[str, Any] = {"modules_to_save": list(pair.head) or None, "inference_mode": True}
    if isinstance(plain.backbone.adapter, HFText):  # peft has no such classes for images
        options["task_type"] = _PEFT_TASK[pair.auto]
    if all(is_norm(layer) for layer in layers.values()):
        values = [_under(f"{name}.ln_tuning_layers.default", pair.adapted.get_submodule(name)) for name in layers]
        return peft.LNTuningConfig(target_modules=_pattern(layers), **options), {
            k: v for d in values for k, v in d.items()
        }
    scaled = {k: v for k, v in scales.items() if bool((v != 1).any())}
    if shifted or any(is_norm(layers[k]) for k in scaled):
        raise ValueError(
            f"{plain.backbone.name}: norms and linear layers are scaled and shifted, and one adapter of peft changes "
            "norms (LN_TUNING) or scales linear layers (IA3); leave to= out, or take a generator of sites='norm'"
        )
    config = peft.IA3Config(target_modules=_pattern(scaled), feedforward_modules=[], **options)
    config.fan_in_fan_out = any(isinstance(layers[k], Conv1D) for k in scaled)
    return config, {f"{k}.ia3_l.default": v for k, v in scaled.items()}


def _pattern(names: Iterable[str]) -> str:
    """These modules alone: of a list of names, peft also takes modules whose name ends in one of them."""
    return "|".join(re.escape(name) for name in names)


def _under(prefix: str, module: nn.Module) -> Tensors:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def _name(plain: Plain) -> str:
    """What people know the network by: an id of the hub, or a folder of theirs."""
    adapter = plain.backbone.adapter
    source = timm_architecture_of(plain.backbone)[0] if isinstance(adapter, TimmImages) else adapter.source  # type: ignore[attr-defined]
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def _original(plain: Plain) -> Plain:
    """The same network without the modulation."""
    return replace(plain, model=plain_copy(plain.backbone.model).cpu().float())


def _without_classifier(model: Any, head: tuple[str, ...]) -> Any:
    for name in head:
        for parameter in model.get_submodule(name).parameters():
            parameter.data.zero_()
    return model


def _timm_pair(plain: Plain) -> _Pair:
    architecture, args = timm_architecture_of(plain.backbone)
    load = plain.backbone.spec()["load"]
    known = load["pretrained"] and load["checkpoint"] is None and not load["name"].startswith("mtl/")
    given = ", ".join(f"{k}={v!r}" for k, v in args.items())
    try:
        adapted, base = (timm_model(p, architecture, args) for p in (plain, _original(plain)))
        head = (timm_classifier(adapted),)
        base = _without_classifier(base, head)
    except ValueError:  # it does not end in a linear layer
        adapted, base, head = plain.model, _original(plain).model, ()
    ways = len(plain.bias) if head else 0
    make = f"base = timm.create_model({architecture!r}, pretrained={known}, num_classes={ways}{given and ', '}{given})"
    if not known:
        here = f"{load['name']!r}, checkpoint={load['checkpoint']!r}" if load["checkpoint"] else repr(load["name"])
        make += f"\nbase.load_state_dict(mtl.load_backbone({here}).model.state_dict(), strict=False)"
    return _Pair(base, adapted, "", head, make, ("timm",) if known else ("mtl", "timm"))


def _transformers_pair(plain: Plain, subject: Subject) -> _Pair:
    place, original = _name(plain), _original(plain)
    make = f'base = transformers.{{}}.from_pretrained("{place}"{{}})'
    try:
        whole, base = (_whole(p, subject) for p in (plain, original))
    except NoSuchClassError:
        return _Pair(original.model, plain.model, "", (), make.format("AutoModel", ""), ("transformers",), "AutoModel")
    make = make.format(whole.auto, f", num_labels={len(subject.names)}")
    base = _without_classifier(base.model, whole.head)
    return _Pair(base, whole.model, f"{base.base_model_prefix}.", whole.head, make, ("transformers",), whole.auto)


def _whole(plain: Plain, subject: Subject) -> Whole:
    with tempfile.TemporaryDirectory() as folder:
        write_network(plain, Path(folder))
        return with_classifier(plain, subject.names, Path(folder))


def _peft() -> Any:
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('to="peft" needs the library peft: pip install "mtl[text]"') from error
    return peft
