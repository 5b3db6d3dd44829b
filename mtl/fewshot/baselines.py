"""What people do without meta-learning, on the same frozen backbone, batched over tasks where the algebra allows.

A method is a function of an episode (support with labels, queries without) that returns predicted labels
``(tasks, n_query)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mtl.episode import Episode, Examples, Inputs
from mtl.fewshot.heads import AbstractHead, Cosine, NearestClassMean, Ridge
from mtl.fewshot.model import at_least_float32, cross_entropy
from mtl.metagrad import tensors
from mtl.networks.backbones import Backbone
from mtl.networks.modulation import Modulation
from mtl.tools.comparison import Kind

Predict = Callable[[Episode], Tensor]
"""An episode whose query labels are blanked, to predicted labels ``(tasks, n_query)``."""


@dataclass(frozen=True)
class Method:
    """A named way to solve an episode.

    Args:
        name: in tables.
        predict: see :data:`Predict`.
        adapted_values: from the number of ways, how many numbers it fits per task.
        kind: ``"baseline"``, ``"ours"`` or ``"control"``.
    """

    name: str
    predict: Predict
    adapted_values: Callable[[int], int] = lambda ways: 0
    kind: Kind = "baseline"

    def __call__(self, episode: Episode) -> Tensor:
        """Predictions for the queries.

        Their labels are blanked first: no method can see them, by mistake or otherwise.
        """
        blank = Examples(episode.query.inputs, torch.zeros_like(episode.query.labels))
        return self.predict(replace(episode, query=blank))


def _on(backbone: Backbone, predict: Predict) -> Predict:
    """Bring episodes to the backbone's device first, or labels would stay behind on the CPU."""
    device = lambda: next(backbone.model.parameters()).device  # noqa: E731  (it may be moved later)
    return lambda episode: predict(episode.to(device()))


def _features(backbone: Backbone, inputs: Inputs, modulation: Modulation | None = None) -> Tensor:
    return at_least_float32(backbone(inputs, modulation))


def baselines(
    backbone: Backbone,
    *,
    c: float = 1.0,
    l2: float = 1.0,
    head_lr: float = 0.05,
    modulation_lr: float = 0.02,
    full_lr: float = 1e-3,
    steps: int = 50,
    centre: Tensor | None = None,
) -> list[Method]:
    """The baselines of the comparison table. Their settings are to be chosen on validation episodes, see :func:`tune`.

    Args:
        c: inverse penalty of logistic regression on unit-length features.
        l2: penalty of ridge regression on unit-length features.
        head_lr, modulation_lr, full_lr: Adam step sizes of the three fine-tuned baselines.
        steps: their gradient steps.
        centre: mean feature ``(width,)`` of the training classes; adds the centred nearest class mean.
    """
    width, sites = backbone.width, backbone.modulation_width
    all_weights = sum(p.numel() for p in backbone.model.parameters())
    found = [
        Method("nearest class mean", _closed_form(backbone, NearestClassMean())),
        Method("logistic regression", _logistic_regression(backbone, c), lambda ways: ways * (width + 1)),
        Method("ridge regression", _closed_form(backbone, Ridge(l2))),
        Method(f"head only, {steps} steps", _tuned_head(backbone, head_lr, steps), lambda ways: ways * width),
        Method(
            f"scale/shift, {steps} steps",
            _tuned_modulation(backbone, modulation_lr, steps),
            lambda ways: 2 * sites + ways * width,
        ),
        Method(
            f"full fine-tuning, {steps} steps",
            _tuned_network(backbone, full_lr, steps),
            lambda ways: all_weights + ways * width,
        ),
    ]
    if centre is not None:
        found.insert(1, Method("nearest class mean, centred", _closed_form(backbone, NearestClassMean(), centre)))
    return [replace(method, predict=_on(backbone, method.predict)) for method in found]


def _closed_form(backbone: Backbone, head: AbstractHead, centre: Tensor | None = None) -> Predict:
    @torch.no_grad()
    def predict(episode: Episode) -> Tensor:
        support = episode.support
        shift = 0.0 if centre is None else centre.to(support.labels.device)
        seen = (_features(backbone, support.inputs) - shift, support.labels)
        return head.logits(_features(backbone, episode.query.inputs) - shift, {}, seen, episode.ways).argmax(-1)

    return predict


def _logistic_regression(backbone: Backbone, c: float) -> Predict:
    @torch.no_grad()
    def predict(episode: Episode) -> Tensor:
        both = (episode.support.inputs, episode.query.inputs)
        seen, asked = (F.normalize(_features(backbone, x), dim=-1).cpu().numpy() for x in both)
        labels = episode.support.labels.cpu().numpy()
        found = [
            LogisticRegression(C=c, max_iter=1000).fit(seen[t], labels[t]).predict(asked[t]) for t in range(len(labels))
        ]
        return torch.stack([torch.as_tensor(f) for f in found]).to(episode.support.labels.device)

    return predict


def _tuned_head(backbone: Backbone, lr: float, steps: int) -> Predict:
    head = Cosine()

    def predict(episode: Episode) -> Tensor:
        support, ways = episode.support, episode.ways
        with torch.no_grad():
            seen, asked = _features(backbone, support.inputs), _features(backbone, episode.query.inputs)
        weights = tensors.leaf(head.init(seen, support.labels, ways))
        adam(
            weights,
            lambda w: cross_entropy(head.support_logits(w, (seen, support.labels), ways), support.labels),
            lr,
            steps,
        )
        return head.logits(asked, weights, (seen, support.labels), ways).argmax(-1)

    return predict


def _tuned_modulation(backbone: Backbone, lr: float, steps: int) -> Predict:
    head = Cosine()

    def predict(episode: Episode) -> Tensor:
        support, ways = episode.support, episode.ways
        start = Modulation.identity(len(support.labels), backbone.modulation_width, device=support.labels.device)
        with torch.no_grad():
            first = head.init(_features(backbone, support.inputs), support.labels, ways)
        weights = tensors.leaf({"scale": start.scale, "shift": start.shift} | first)

        def loss(w: tensors.Tensors) -> Tensor:
            seen = _features(backbone, support.inputs, Modulation(w["scale"], w["shift"]))
            return cross_entropy(head.support_logits(w, (seen, support.labels), ways), support.labels)

        adam(weights, loss, lr, steps)
        with torch.no_grad():
            asked = _features(backbone, episode.query.inputs, Modulation(weights["scale"], weights["shift"]))
            return head.logits(asked, weights, (asked[:, :0], support.labels), ways).argmax(-1)

    return predict


def _tuned_network(backbone: Backbone, lr: float, steps: int) -> Predict:
    """Every weight of the network, task by task: nothing can be shared.

    Raises:
        ValueError: when called with weights that are not in one place.
    """
    head = Cosine()

    def one(episode: Episode) -> Tensor:
        if backbone.placement is not None:
            raise ValueError(f"full fine-tuning of {backbone.name}: its weights are sharded or spread; leave it out")
        support, ways = episode.support, episode.ways
        model = {f"model.{k}": v for k, v in tensors.leaf(dict(backbone.model.named_parameters())).items()}
        network = lambda w, x: torch.func.functional_call(backbone, {k: w[k] for k in model}, (x,)).float()  # noqa: E731
        with torch.no_grad():
            first = head.init(_features(backbone, support.inputs), support.labels, ways)
        weights = model | first
        # Adam moves a copy: functional_call swaps it in for one forward pass, the backbone stays as it is.
        weights = {k: v.clone().detach().requires_grad_() for k, v in weights.items()}
        adam(
            weights,
            lambda w: cross_entropy(
                head.support_logits(w, (network(w, support.inputs), support.labels), ways), support.labels
            ),
            lr,
            steps,
        )
        with torch.no_grad():
            asked = network(weights, episode.query.inputs)
            return head.logits(asked, weights, (asked[:, :0], support.labels), ways).argmax(-1)

    return lambda episode: torch.cat([one(episode[t : t + 1]) for t in range(episode.tasks)])


def adam(weights: tensors.Tensors, loss: Callable[[tensors.Tensors], Tensor], lr: float, steps: int) -> None:
    """Adam in place. It is element-wise, so a batch of tasks moves as each would alone."""
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss(weights).sum().backward()
        optimizer.step()
