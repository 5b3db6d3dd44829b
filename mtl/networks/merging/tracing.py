"""Tracing one forward pass: the inputs of the sites, and the linear layers that read their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtl.networks.modulation import Hook, Site, watching

LinearMap = nn.Linear | Conv1D


@dataclass
class Trace:
    """Record of :func:`trace_sites`."""

    inputs: dict[str, tuple]  # of each site, its first call's arguments
    readers: dict[str, list[LinearMap]]  # of each site called once, the linear layers given its very output


def trace_sites(model: nn.Module, sites: tuple[Site, ...], features: Callable[[], Tensor]) -> Trace:
    """Watch one forward of the network."""
    inputs: dict[str, tuple] = {}
    outputs: dict[str, list[Tensor]] = {s.name: [] for s in sites}
    reads: dict[LinearMap, list[Tensor]] = {m: [] for m in model.modules() if isinstance(m, LinearMap)}

    def at_site(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        inputs.setdefault(name, args)
        outputs[name].append(output)

    def at_reader(reader: LinearMap, module: nn.Module, args: tuple) -> None:
        reads[reader].extend(args[:1])

    hooks = [Hook(m, partial(at_reader, m), before=True) for m in reads]
    hooks += [Hook(model.get_submodule(s.name), partial(at_site, s.name)) for s in sites]
    with watching(hooks):
        features()
    once = {n: o[0] for n, o in outputs.items() if len(o) == 1}
    return Trace(inputs, {n: [m for m, r in reads.items() if len(r) == 1 and r[0] is o] for n, o in once.items()})


def shared_weights(model: nn.Module) -> set[int]:
    """Identities of the parameters that more than one module holds."""
    counts = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    return {i for i, n in counts.items() if n > 1}
