"""Finding the sites of a model by watching one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtl.episode import Inputs, RawInputs
from mtl.metagrad.tensors import has_values
from mtl.networks.modulation.layers import channel_dim, hook_point, is_linear_map, is_norm, uncompiled
from mtl.networks.modulation.sites import Site, SiteKind
from mtl.networks.modulation.watching import Hook, watching

log = logging.getLogger(__name__)


def find_sites(
    model: nn.Module, kind: SiteKind = "norm", last_k: int | None = None, *, example_inputs: Inputs | RawInputs
) -> tuple[Site, ...]:
    """The sites of a model, in the order in which one forward pass reaches them.

    ``norm`` takes every normalisation layer. ``ssf`` adds every ``nn.Linear``, transformers ``Conv1D``, ``nn.Conv2d``,
    except the classifier, poolers, and convolutions without bias: a norm follows those, and its modulation at fixed
    statistics does all that theirs could. ``none`` takes no layer.

    A layer that is not called is no site (its weights are read directly, or it is dead), nor is one whose output does
    not hold the examples one after the other along its first axis (position tables, sequence-first attention, routed
    tokens): nothing says which row belongs to which task. A layer called several times is modulated alike each
    time, which merges exactly; called with different output shapes, it is left out.

    Args:
        model: any module; it is left as it was found.
        last_k: keep the last ``k`` blocks and whatever runs after the first of them has begun.
        example_inputs: two or more different examples, ``(n, ...)`` or token tensors by name, each ``(n, length)``.

    Raises:
        ValueError: no site, fewer blocks than ``last_k``, or a single example.
    """
    if kind == "none":
        if last_k is not None:
            raise ValueError(f"last_k={last_k} with sites='none': there is nothing to take the last of; leave it out")
        return ()
    model = uncompiled(model)
    layers = _candidates(model, kind)
    calls = _outputs_by_layer(model, layers, Inputs.of(example_inputs))
    sites = tuple(_site(name, layers[name], outputs[0]) for name, outputs in calls.items())
    if not sites:
        raise ValueError(
            f"sites={kind!r}: no site in {type(model).__name__}; looked for {_looked_for(kind)} among its "
            f"{sum(1 for _ in model.modules())} modules, found {sorted(layers) or 'none'}, none called with the "
            "examples along the first axis" + ("; try sites='ssf'" if kind == "norm" else "")
        )
    return sites if last_k is None else _last_blocks(sites, last_k)


def _run(model: nn.Module, inputs: Inputs):
    """Call a model on one tensor, or on tensors by name."""
    return model(**inputs.tensors) if inputs.named else model(inputs.tensor)


def _candidates(model: nn.Module, kind: SiteKind) -> dict[str, nn.Module]:
    if kind not in ("norm", "ssf"):
        raise ValueError(f"sites={kind!r}: expected 'norm', 'ssf' or 'none'")
    head = _classifier(model)
    wanted = {n: m for n, m in model.named_modules() if m is not head and "pooler" not in n.split(".")}
    return {n: m for n, m in wanted.items() if is_norm(m) or (kind == "ssf" and is_linear_map(m))}


def _classifier(model: nn.Module) -> nn.Module | None:
    """timm and transformers each have a method for it; other modules have none."""
    getter = getattr(model, "get_classifier", None) or getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def _looked_for(kind: SiteKind) -> str:
    norms = "LayerNorm, BatchNorm, GroupNorm, RMSNorm (also by class name)"
    return norms if kind == "norm" else f"{norms}, Linear, Conv1D and Conv2d with a bias"


def _outputs_by_layer(model: nn.Module, layers: dict[str, nn.Module], inputs: Inputs) -> dict[str, list[Tensor]]:
    """The activations of every usable layer on the examples, in execution order."""
    if (n := inputs.count) < 2:
        raise ValueError(f"example_inputs holds {n} example; two different ones are needed to tell the batch axis")
    together, alone = (_trace(model, layers, inputs.map(lambda v, k=k: v[-k:])) for k in (2, 1))
    good = {k: v for k, v in together.items() if _batch_major(v, alone.get(k, []))}
    if skipped := [k for k in layers if k not in good]:
        log.info("not sites (never called, or examples not along the first axis): %s", skipped)
    return good


def _trace(model: nn.Module, layers: dict[str, nn.Module], inputs: Inputs) -> dict[str, list[Tensor]]:
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str, x: object) -> None:
        # Cloned: the activation that follows may work in place. Only tensors can be sites.
        outputs.setdefault(name, []).append(x.detach().clone() if isinstance(x, Tensor) else torch.empty(0))

    def hook(name: str, layer: nn.Module) -> Hook:
        target, before = hook_point(layer)
        return Hook(target, lambda _, args, *output: keep(name, args[0] if before else output[0]), before)

    with watching(hook(*named) for named in layers.items()), torch.no_grad(), _evaluating(model):
        _run(model, inputs)
    return outputs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batch_major(together: Sequence[Tensor], alone: Sequence[Tensor]) -> bool:
    """Whether the second half of the rows of two examples equals the rows of the second example alone."""
    if len(together) != len(alone) or len({x.shape for x in together}) != 1:
        return False
    return all(_second_half_is(two, one) for two, one in zip(together, alone, strict=True))


def _second_half_is(two: Tensor, one: Tensor) -> bool:
    if one.dim() < 2 or two.shape != (2 * one.shape[0], *one.shape[1:]):
        return False
    if not has_values(two):  # when planning, nothing is computed: the shape has to do
        return True
    # Batch size changes the summation order (and TF32 rounds coarsely); another example differs by far more than this.
    tolerance = 1e-2 if one.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((two[len(one) :] - one).abs().max() <= tolerance * one.abs().max())


def _site(name: str, layer: nn.Module, output: Tensor) -> Site:
    dim = channel_dim(layer, output)
    parts = name.split(".")[:-1]
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    return Site(name, output.shape[dim], dim, ".".join(parts[: numbered[-1] + 1]) if numbered else "")


def _last_blocks(sites: tuple[Site, ...], k: int) -> tuple[Site, ...]:
    blocks = list(dict.fromkeys(s.block for s in sites if s.block))
    if not 1 <= k <= len(blocks):
        raise ValueError(f"last_k={k}: expected 1 to {len(blocks)}, the number of blocks; last_k=None takes every site")
    first = next(i for i, s in enumerate(sites) if s.block == blocks[-k])
    return sites[first:]
