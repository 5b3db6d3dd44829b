"""A timm checkpoint: one file of weights, classifier included, and timm's own config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import Tensor, nn

from mtl.fewshot.exporting.plain import AS_A_PROGRAM, Plain, Subject, Written, some, to_plain
from mtl.networks.backbones import EMBEDDED, Backbone, TimmImages
from mtl.networks.backbones.packaged_images import LITES, timm_architecture
from mtl.networks.backbones.timm_networks import TIMM_POOLING, embedded_info

LOAD = 'timm.create_model("local-dir:.", pretrained=True)'  # by checkpoint_path= timm takes its own preprocessing
PREDICT = """\
import timm, torch

model = {load}.eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(torch.stack([transform(image.convert("{mode}")) for image in images]))"""

# Arguments of load_backbone itself; the others are the network's. The export is float32 on the CPU.
_LOADERS = frozenset({"name", "sites", "last_k", "pretrained", "checkpoint", "pooling", "seed", "dtype", "device"})


def write_timm(subject: Subject, draft: Path) -> Written:
    """Write the files into ``draft`` and load them again."""
    plain = to_plain(subject)
    adapter = plain.backbone.adapter
    assert isinstance(adapter, TimmImages)
    architecture, args = timm_architecture_of(plain.backbone)
    model = timm_model(plain, architecture, args)
    save_for_hf(model, str(draft), {"label_names": list(subject.names)}, model_args=args, safe_serialization=True)
    config = json.loads((draft / "config.json").read_text())
    # The tag and the larger test size belong to the original weights.
    kept = {k: v for k, v in config["pretrained_cfg"].items() if k not in ("tag", "pool_size") and "test" not in k}
    config |= {"pretrained_cfg": kept | adapter.config}
    (draft / "config.json").write_text(json.dumps(config, indent=2))  # the preprocessing, for what is loaded next
    again = timm.create_model(f"local-dir:{draft}", pretrained=True).eval()
    mode = "L" if adapter.config["input_size"][0] == 1 else "RGB"
    return Written(
        LOAD,
        PREDICT.format(load=LOAD, mode=mode),
        "config.json",
        config,
        {"architecture": architecture, "model_args": args, "preprocessing": adapter.config},
        lambda inputs: plain.backbone.features(inputs, again),
    )


def timm_architecture_of(backbone: Backbone) -> tuple[str, dict[str, Any]]:
    """The name in timm's registry, and the arguments that the network was built with."""
    adapter = backbone.adapter
    architecture, args = _built_with(backbone)
    if isinstance(adapter, TimmImages) and not adapter.built_for_size:
        del args["img_size"]
    return architecture, args


def _built_with(backbone: Backbone) -> tuple[str, dict[str, Any]]:
    load = backbone.spec()["load"]
    args = {k: v for k, v in load.items() if k not in _LOADERS | {"pretrained_cfg_overlay"}}
    if load["pooling"] is not None:
        args["global_pool"] = TIMM_POOLING.get(load["pooling"], load["pooling"])
    if load["name"] == EMBEDDED:
        info = embedded_info()
        return info["model"], {k: v for k, v in info["kwargs"].items() if k != "num_classes"} | args
    if load["name"] in LITES:
        return timm_architecture(load["name"]), args
    folder = Path(load["name"])
    if folder.is_dir():
        config = json.loads((folder / "config.json").read_text())
        known = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
        return config["architecture"], known | args
    return load["name"].removeprefix("timm/"), args


def timm_model(plain: Plain, architecture: str, args: dict[str, Any]) -> nn.Module:
    """The timm network with a classifier, holding the merged weights."""
    model: Any = timm.create_model(architecture, num_classes=len(plain.bias), **args).eval()
    classifier, prefix = model.get_classifier(), timm_classifier(model)
    wanted = {f"{prefix}.weight", f"{prefix}.bias"}
    state = {**plain.model.state_dict(), f"{prefix}.weight": plain.weight, f"{prefix}.bias": plain.bias}
    own = model.state_dict()
    if not isinstance(classifier, nn.Linear) or not wanted <= own.keys():
        raise ValueError(
            f"{architecture} ends in {type(classifier).__name__}, not in a Linear layer with a bias on its "
            f"{plain.backbone.width} pooled features, so no plain checkpoint can hold it; {AS_A_PROGRAM}"
        )
    _require_same_keys(architecture, own, state)
    model.load_state_dict(state)
    return model


def timm_classifier(model: Any) -> str:
    """The name of the module that classifies."""
    return next((name for name, module in model.named_modules() if module is model.get_classifier()), "")


def _require_same_keys(architecture: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    other = own.keys() ^ state.keys() | {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}
    if other:
        raise ValueError(
            f"{architecture} with a classifier differs from {architecture} without one in {some(other)}, so features "
            f"and classifier do not fit in one plain checkpoint; {AS_A_PROGRAM}"
        )
