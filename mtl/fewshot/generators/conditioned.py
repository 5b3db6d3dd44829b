"""The support-conditioned generator: scale, shift and step sizes of every site from a labelled support set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.fewshot.generators.base import GENERATORS, AbstractSiteGenerator, SupportView
from mtl.fewshot.heads import class_means
from mtl.metagrad.tensors import Tensors
from mtl.networks.modulation import Site

EPS = 1e-6


@GENERATORS.register("dense")
class SupportConditioned(AbstractSiteGenerator):
    r"""Scale and shift as a learned function of the support set, starting near the identity.

    .. math:: \text{scale}_s = 1 + b_s + r_s\, g_s(z, a_s), \qquad \text{shift}_s = b'_s + r'_s\, g'_s(z, a_s)

    The task vector :math:`z` pools statistics of the labelled features (:class:`TaskEncoder`); :math:`a_s` are the
    class-wise statistics of the site's own activations; :math:`g` is shared by sites of one width, told apart by a site
    embedding. The gates :math:`r` start small but not at zero, so that the modulation starts near the identity and
    every weight has a gradient. The offset :math:`b` is common to all tasks.

    Invariant to the order of the support examples and to the numbering of classes; any number of ways and of (unequal)
    shots.

    Args:
        sites: the backbone's sites.
        width: width of the pooled features.
        step_size: initial inner step size, > 0.
        hidden: width of the trunk.
        gate: initial standard deviation of the gates.
    """

    def __init__(
        self, sites: Sequence[Site], width: int, step_size: float = 0.1, hidden: int = 128, gate: float = 1e-2
    ) -> None:
        super().__init__(sites, width, step_size, hidden=hidden, gate=gate)
        if not 0 <= gate < math.inf:
            raise ValueError(f"SupportConditioned(gate={gate}): expected a number >= 0; 0 starts as no change")
        distinct = sorted(set(self.widths))
        self.encoder = TaskEncoder(width, hidden)
        self.site_embedding = nn.Embedding(len(self.widths), hidden)
        read = {str(w): nn.Sequential(nn.LayerNorm(4 * w), nn.Linear(4 * w, hidden)) for w in distinct}
        self.read = nn.ModuleDict(read)
        self.trunk = _normalised_layer(3 * hidden, hidden)
        self.write = nn.ModuleDict({str(w): nn.Linear(hidden, 2 * w) for w in distinct})
        self.gate = nn.Parameter(gate * torch.randn(2 * self.modulation_width))
        self.base = nn.Parameter(torch.zeros(2 * self.modulation_width))
        self.rates = nn.Linear(hidden, 2 * len(self.widths) + 1)
        nn.init.zeros_(self.rates.weight)
        nn.init.zeros_(self.rates.bias)

    def forward(self, view: SupportView) -> Tensors:
        # The generator stays in float32 where the backbone runs in low precision.
        with torch.autocast(view.features.device.type, enabled=False):
            return self._emit(view)

    def _emit(self, view: SupportView) -> Tensors:
        features = self.standard.apply_to(view.features.to(self.base), {})
        task = self.encoder(features, view.labels, view.ways)
        emitted = []
        for i, activation in enumerate([*view.activations, features]):
            width = str(activation.shape[-1])
            statistics = class_statistics(activation.to(self.base), view.labels, view.ways)
            site = self.site_embedding.weight[i].expand_as(task)
            hidden = self.trunk(torch.cat([task, self.read[width](statistics), site], -1))
            emitted.append(self.write[width](hidden).chunk(2, dim=-1))
        scales, shifts = zip(*emitted, strict=True)
        out = self.base + self.gate * torch.cat([*scales, *shifts], -1)
        scale, shift = out.chunk(2, dim=-1)
        return {"scale": 1 + scale, "shift": shift, "log_lr": self.step_sizes_of.log_lr + self.rates(task)}


def class_statistics(values: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Per channel: mean, spread, spread between class means, and spread inside classes.

    ``(tasks, n, c) -> (tasks, 4 c)``. The spread inside classes is zero for one example per class.
    """
    means = class_means(values, labels, ways)
    own = torch.gather(means, 1, labels.unsqueeze(-1).expand_as(values))
    mean = values.mean(1)
    spread = (values - mean.unsqueeze(1)).square().mean(1)
    between = (means - means.mean(1, keepdim=True)).square().mean(1)
    within = (values - own).square().mean(1)
    return torch.cat([mean, *((v + EPS).sqrt() for v in (spread, between, within))], -1)


def _normalised_layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs), nn.GELU(), nn.LayerNorm(outputs))


class TaskEncoder(nn.Module):
    """A vector that tells tasks apart: labelled features ``(tasks, n, width)`` to ``(tasks, hidden)``.

    Class statistics say where the features lie. Pairs of examples say what the labels *mean*: if examples of different
    classes always differ in a property, and examples of one class never do, the task is about that property. One
    example per class is enough to rule out the properties that examples of different classes share.
    """

    def __init__(self, width: int, hidden: int, channels: int = 64) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
        self.compare = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.out = _normalised_layer(4 * channels + 2 * hidden, hidden)

    def forward(self, features: Tensor, labels: Tensor, ways: int) -> Tensor:
        x = self.project(features)
        pairs = self.compare((x.unsqueeze(1) - x.unsqueeze(2)).abs())
        same = labels.unsqueeze(1) == labels.unsqueeze(2)
        others = ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
        pooled = [_masked_mean(pairs, mask) for mask in (same & others, ~same)]
        return self.out(torch.cat([class_statistics(x, labels, ways), *pooled], -1))


def _masked_mean(pairs: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pairs in the mask, zero when there is none: ``(tasks, n, n, c), (tasks, n, n) -> (tasks, c)``."""
    weight = mask.to(pairs.dtype)
    return torch.einsum("tijc,tij->tc", pairs, weight) / weight.sum((1, 2)).clamp_min(1).unsqueeze(-1)
