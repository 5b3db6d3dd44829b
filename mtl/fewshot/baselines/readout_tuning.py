r"""Fine-tuning on features that stay as they are, many tasks at once, with the gradient written out.

Scale :math:`s` and shift :math:`b` of every channel make :math:`y = s x + b` of a feature :math:`x`; a cosine head has
the logits :math:`c \langle y, v_k \rangle / |y|` with one unit vector per class. Multiplied out,

.. math::

    \langle y, v_k \rangle = \langle x, s v_k \rangle + \langle b, v_k \rangle, \qquad
    |y|^2 = \langle x^2, s^2 \rangle + 2 \langle x, s b \rangle + |b|^2,

so a step is a few matrix products with the features and their squares, and nothing of their size is made: a third of
the time of the graph that autograd would build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.episode import Episode
from mtl.fewshot.heads import Cosine

FUSED = ("cpu", "cuda")  # devices that every PyTorch has a fused Adam for
VALUES_AT_ONCE = 2**25  # of the support features of the tasks that are tuned together
_TINY = 1e-24  # least squared length


def tune_on_readout(
    episode: Episode, lr: float, steps: int, *, modulated: bool = True, head_steps: int = 0, head: Cosine | None = None
) -> Tensor:
    """Logits of the queries, ``(tasks, m, ways)``, after Adam on the support set; see :func:`fine_tune`.

    Args:
        episode: with features ``(tasks, n, D)`` as inputs, in at least float32.
        lr: Adam's step size.
        steps: gradient steps on the head, and on scale and shift.
        modulated: tune scale and shift too; else the head alone.
        head_steps: steps of a fresh Adam on the head alone after these.
    """
    size = max(1, VALUES_AT_ONCE // max(1, episode[:1].support.inputs.tensor.numel()))
    parts = [episode] if size >= episode.tasks else [episode[t : t + size] for t in range(0, episode.tasks, size)]
    return torch.cat([_tune(part, lr, steps, modulated, head_steps, head or Cosine()) for part in parts])


@torch.no_grad()
def _tune(episode: Episode, lr: float, steps: int, modulated: bool, head_steps: int, head: Cosine) -> Tensor:
    seen, asked, labels, ways = (
        episode.support.inputs.tensor,
        episode.query.inputs.tensor,
        episode.support.labels,
        episode.ways,
    )
    members = F.one_hot(labels, ways).to(seen.dtype).mT
    weight = head.init(seen, labels, ways)["weight"]
    if modulated:
        scale, shift = torch.ones_like(seen[:, 0]), torch.zeros_like(seen[:, 0])
        fixed = _Fixed(seen, seen.square(), members, head.scale)
        _descend((scale, shift, weight), lambda: fixed.gradients(scale, shift, weight), lr, steps)
        seen, asked = (x * scale.unsqueeze(1) + shift.unsqueeze(1) for x in (seen, asked))
    else:
        head_steps = steps
    if head_steps:
        unit = F.normalize(seen, dim=-1)
        _descend((weight,), lambda: (_head_gradient(unit, members, head.scale, weight),), lr, head_steps)
    return head.logits(asked, {"weight": weight}, (asked[:, :0], labels), ways)


def _descend(weights: Sequence[Tensor], gradients: Callable[[], Iterable[Tensor]], lr: float, steps: int) -> None:
    """Steps of Adam, in place."""
    optimizer = adam(weights, lr)
    for _ in range(steps):
        for weight, gradient in zip(weights, gradients(), strict=True):
            weight.grad = gradient
        optimizer.step()


def adam(weights: Sequence[Tensor], lr: float) -> torch.optim.Adam:
    """In one pass over the weights where there is one: in a large network Adam takes longer than a few examples."""
    return torch.optim.Adam(weights, lr=lr, fused=weights[0].device.type in FUSED)


@dataclass(frozen=True)
class _Fixed:
    """What no step changes.

    Args:
        features: ``(tasks, n, D)``.
        squares: of the features.
        members: one-hot labels, ``(tasks, ways, n)``.
        size: the head's scale.
    """

    features: Tensor
    squares: Tensor
    members: Tensor
    size: float

    def gradients(self, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the mean cross-entropy, in scale and shift ``(tasks, D)`` and the head's ``(tasks, ways, D)``."""
        unit, length = _unit(weight)
        s, b = scale.unsqueeze(1), shift.unsqueeze(1)
        dots = torch.cat([unit * s, s * b], 1) @ self.features.mT
        square = s.square() @ self.squares.mT + 2 * dots[:, -1:] + b.square().sum(-1, keepdim=True)
        square = square.clamp_min(_TINY)
        factor = self.size * square.rsqrt()
        logits = (dots[:, :-1] + unit @ b.mT) * factor

        to_logits = _cross_entropy_gradient(logits, self.members)
        to_dots, to_square = to_logits * factor, (to_logits * logits).sum(1, keepdim=True) / (-2 * square)
        back = torch.cat([to_dots, 2 * to_square], 1) @ self.features
        of_class, of_square, offset = back[:, :-1], back[:, -1], to_dots.sum(-1, keepdim=True)
        d_scale = (of_class * unit).sum(1) + of_square * shift + 2 * scale * (to_square @ self.squares).squeeze(1)
        d_shift = (offset.mT @ unit).squeeze(1) + of_square * scale + 2 * shift * to_square.sum(-1)
        return d_scale, d_shift, _of_weight(of_class.mul_(s).addcmul_(offset, b), unit, length)


def _head_gradient(unit_features: Tensor, members: Tensor, size: float, weight: Tensor) -> Tensor:
    """Of the mean cross-entropy in the head's weight alone, ``(tasks, ways, D)``."""
    unit, length = _unit(weight)
    to_logits = _cross_entropy_gradient(size * unit @ unit_features.mT, members)
    return _of_weight(size * to_logits @ unit_features, unit, length)


def _cross_entropy_gradient(logits: Tensor, members: Tensor) -> Tensor:
    """In the logits ``(tasks, ways, n)``, of the mean over examples."""
    return (logits.softmax(1) - members) / logits.shape[-1]


def _unit(weight: Tensor) -> tuple[Tensor, Tensor]:
    length = weight.norm(dim=-1, keepdim=True).clamp_min(_TINY**0.5)
    return weight / length, length


def _of_weight(d_unit: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient of a vector from that of its direction."""
    along = torch.linalg.vecdot(d_unit, unit).unsqueeze(-1)
    return torch.addcmul(d_unit, unit, along, value=-1).div_(length)
