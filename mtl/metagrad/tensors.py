"""Named tensors, the one container for fast weights, meta-parameters and gradients.

Fast weights and everything the generator emits carry a leading *task axis*: row ``t`` belongs to task ``t`` and to no
other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Tensors = dict[str, Tensor]


def has_values(tensor: Tensor) -> bool:
    """Whether there are numbers behind the tensor: a fake one, or one on the meta device, has a shape and none."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def leaf(tensors: Mapping[str, Tensor], requires_grad: bool = True) -> Tensors:
    """Detached views of the tensors, new leaves of the graph. Integer tensors never require a gradient.

    Raises:
        RuntimeError: in :class:`torch.inference_mode`, where they would require one and never get it.
    """
    if requires_grad and torch.is_inference_mode_enabled():
        raise RuntimeError(
            "no gradient can be computed in torch.inference_mode(); use torch.no_grad() around this call, which is no "
            "slower, or call it outside"
        )
    return {k: v.detach().requires_grad_(requires_grad and v.is_floating_point()) for k, v in tensors.items()}


def detach(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same values outside every graph."""
    return {k: v.detach() for k, v in tensors.items()}


def clone(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies with memory of their own."""
    return {k: v.clone() for k, v in tensors.items()}


def usable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it was made in inference mode: no graph takes one of those."""
    return tensor.clone() if tensor.is_inference() else tensor


def zeros_like(tensors: Mapping[str, Tensor]) -> Tensors:
    """Zeros of the same shapes."""
    return {k: torch.zeros_like(v) for k, v in tensors.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float = 1.0) -> Tensors:
    """``a + alpha * b``, key by key; both have the same keys. A few kernels, however many tensors there are."""
    if not a:
        return {}
    found = torch._foreach_add(list(a.values()), [b[k] for k in a], alpha=alpha)  # pyright: ignore
    return dict(zip(a, found, strict=True))


def times(a: Mapping[str, Tensor], factor: float | Tensor) -> Tensors:
    """``factor * a``, as cheaply."""
    if not a:
        return {}
    return dict(zip(a, torch._foreach_mul(list(a.values()), factor), strict=True))  # pyright: ignore


def per_task(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one number per task, ``(tasks,)``, so that it broadcasts against ``like``, ``(tasks, ...)``."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def scale(tensors: Mapping[str, Tensor], factor: Tensor) -> Tensors:
    """Multiply task ``t`` of every tensor by ``factor[t]``; ``factor`` has shape ``(tasks,)``."""
    return {k: v * per_task(factor, v) for k, v in tensors.items()}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All of them side by side, ``(tasks, P)``."""
    return torch.cat([v.reshape(len(v), -1) for v in tensors.values()], 1)


def unflat(rows: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """The reverse of :func:`flat`, with the names and shapes of ``like``."""
    parts = rows.split([v[0].numel() for v in like.values()], 1)  # one node of a graph, however many tensors
    return {k: part.reshape(v.shape) for part, (k, v) in zip(parts, like.items(), strict=True)}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product over all named tensors, task by task: shape ``(tasks,)``."""
    products = [(v * b[k]).reshape(len(v), -1).sum(1) for k, v in a.items()]
    return torch.stack(products).sum(0)


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm over all named tensors, task by task: shape ``(tasks,)``."""
    return dot(a, a).sqrt()


def multiple(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The one factor that brings b nearest to a, and how much of a's length is left in the task where that is most."""
    of_a, of_b = flat(a), flat(b)
    tiny = torch.finfo(of_a.dtype).tiny
    factor = (of_a * of_b).sum() / of_b.square().sum().clamp_min(tiny)
    return factor, ((of_a - factor * of_b).norm(dim=1) / of_a.norm(dim=1).clamp_min(tiny)).amax()


def grad(
    outputs: Tensor | Collection[Tensor],
    *inputs: Mapping[str, Tensor],
    cotangents: Iterable[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    magnitude: float | None = None,
) -> tuple[Tensors, ...]:
    """``torch.autograd.grad`` for groups of named inputs; one dictionary of gradients per group.

    An input that the outputs do not depend on gets zeros, not ``None``.

    Args:
        magnitude: the cotangents travel at about this size, and the gradients are scaled back by the same power of two:
            float16 in between neither underflows nor changes a digit.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    seeds = [None] * len(outputs) if cotangents is None else list(cotangents)
    if magnitude is not None:
        seeds = [torch.ones_like(o) if s is None else s for o, s in zip(outputs, seeds, strict=True)]
        factor = magnitude * power_of_two(seeds)
        seeds = [s * factor for s in seeds]
        found = grad(outputs, *inputs, cotangents=seeds, create_graph=create_graph, retain_graph=retain_graph)
        return tuple({k: v / factor for k, v in group.items()} for group in found)
    pairs = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
    wanted = [v for group in inputs for v in group.values() if v.requires_grad]
    if not pairs or not wanted:
        return tuple(zeros_like(group) for group in inputs)
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            wanted,
            [s for _, s in pairs],
            create_graph=create_graph,
            retain_graph=retain_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return tuple({k: next(found) if v.requires_grad else torch.zeros_like(v) for k, v in g.items()} for g in inputs)


def power_of_two(values: Iterable[Tensor]) -> Tensor:
    """The power of two that brings the largest absolute value to between a half and one. It stays on the device."""
    largest = torch.stack([v.detach().abs().amax() for v in values if v.numel()]).amax().float()
    return torch.exp2(-torch.frexp(largest.clamp_min(1e-30)).exponent.float())


def nodes(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graph behind the outputs, once. About a microsecond each; nothing is computed."""
    stack = [o.grad_fn for o in outputs if o.grad_fn is not None]
    seen = set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += [n for n, _ in node.next_functions if n is not None]


def reaches(outputs: Iterable[Tensor], inputs: Mapping[str, Tensor]) -> set[str]:
    """Names of the leaves that the outputs depend on, read off the graph without computing anything."""
    outputs = list(outputs)
    leaves = {id(v): k for k, v in inputs.items()}
    met = [*outputs, *(getattr(node, "variable", None) for node in nodes(outputs))]
    return {leaves[id(v)] for v in met if id(v) in leaves}
