"""Networks larger than one device: sharded over processes, or spread over devices, main memory and disk.

Both move weights in and out while the network runs. A double backward would keep every gathered weight in memory, so
there are no second derivatives. Finite differences and first-order estimators work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from transformers import BitsAndBytesConfig

from mtl.metagrad.execution import Execution
from mtl.networks.backbones.backbone import Backbone
from mtl.networks.backbones.options import Placement

SHARDED = "its weights are sharded over processes (FSDP), and a double backward would keep all of them gathered"
SPREAD = "its weights are moved in and out as it runs, and a double backward would keep all of them in memory"


def shard(backbone: Backbone, accelerator: Accelerator) -> Backbone:
    """Divide the frozen weights over all processes (FSDP2); each gathers one block at a time while it runs.

    Every process works on tasks of its own, but all pass through the network together: the number of tasks of a step
    must be a multiple of the number of processes, and evaluation takes all of them. Options of Accelerate's FSDP plugin
    are used where there is one (``accelerate launch --use_fsdp --fsdp_version 2``): resharding after the forward, and
    offloading to main memory.

    Args:
        backbone: on any device, the same in every process; changed in place.
        accelerator: whose processes take part.

    Returns:
        The backbone.

    Raises:
        ValueError: with a single process, or a network that is placed already.
    """
    if accelerator.num_processes < 2:
        raise ValueError(
            "shard: one process has nothing to divide; start several with `accelerate launch --num_processes "
            "N`, or load the backbone with device_map= to spread it over devices and main memory"
        )
    if backbone.placement:
        raise ValueError(f"{backbone.name} is sharded or spread already; load it anew to place it differently")
    backbone.freeze_fingerprint()
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == "FSDP" else None
    offload = plugin is not None and bool(plugin.cpu_offload)
    options: dict[str, Any] = {
        "reshard_after_forward": plugin.reshard_after_forward if plugin is not None else True,
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    if not offload:
        backbone.to(accelerator.device)
    for block in _blocks(backbone.model):
        fully_shard(block, **options)
    fully_shard(backbone.model, **options)
    backbone.place(Placement(accelerator.device, Execution(no_double_backward_reason=SHARDED, sync_max=largest)))
    return backbone


def spread(
    model: nn.Module, device_map: str | dict[str, Any], offload_folder: str | Path | None
) -> torch.device | None:
    """Put a network's weights on several devices, in main memory and on disk; they are brought in layer by layer.

    Args:
        model: on the CPU; changed in place.
        device_map: ``"auto"``, or a device, ``"cpu"`` or ``"disk"`` by the name of each part.
        offload_folder: for what goes to disk; a temporary one where none is given.

    Returns:
        The device that inputs go to; None where all weights are on one device, as ever.

    Raises:
        ValueError: for a string that is not ``"auto"``.
    """
    if isinstance(device_map, str):
        if device_map != "auto":
            raise ValueError(f"device_map={device_map!r}: expected 'auto', or a device by the name of each part")
        whole = sorted({type(block).__name__ for block in _blocks(model)})
        memory = get_balanced_memory(model, no_split_module_classes=whole)
        device_map = dict(infer_auto_device_map(model, memory, no_split_module_classes=whole))
    main = main_device(device_map)
    if main is None:
        model.to(next(iter(device_map.values())))
        return None
    if "disk" in device_map.values() and offload_folder is None:
        offload_folder = tempfile.mkdtemp(prefix="mtl-offload-")
    dispatch_model(
        model.eval(), device_map, main_device=cast(Any, str(main)), offload_dir=offload_folder, force_hooks=True
    )
    return main


def main_device(device_map: dict[str, Any]) -> torch.device | None:
    """Where inputs go: the first device of the map that computes. None where all weights are on one device."""
    places = list(dict.fromkeys(device_map.values()))
    if places in ([], ["cpu"]) or (len(places) == 1 and places[0] != "disk"):
        return None
    return torch.device(next((p for p in places if p not in ("cpu", "disk")), "cpu"))


Quantization = Literal["8bit", "4bit"]


def quantization_config(quantization: Quantization) -> BitsAndBytesConfig:
    """The configuration with which transformers loads linear layers in fewer bits.

    Raises:
        ValueError: for anything but ``"8bit"`` and ``"4bit"``.
        ImportError: bitsandbytes is not installed.
    """
    if quantization not in ("8bit", "4bit"):
        raise ValueError(f"quantization={quantization!r}: expected '8bit' or '4bit'")
    if find_spec("bitsandbytes") is None:
        raise ImportError(f'quantization={quantization!r} needs bitsandbytes: pip install "mtl[quantized]"')
    return BitsAndBytesConfig(load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit")


def largest(value: Tensor) -> Tensor:
    """The largest value of all processes; NaN counts as infinity."""
    value = torch.nan_to_num(value.detach(), nan=torch.inf, posinf=torch.inf)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a network: the outermost members of its lists and sequences of modules."""

    def search(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(module, nn.ModuleList | nn.Sequential) and any(True for _ in child.parameters()):
                yield child
            else:
                yield from search(child)

    return list(search(model))
