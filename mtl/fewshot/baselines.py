"""Few-shot classification without meta-learning, on the same frozen backbone: one table of baselines.

A method is a function of an episode (support with labels, queries without) that returns predicted labels
``(tasks, n_query)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.episode import Episode, Examples, Inputs
from mtl.fewshot.heads import AbstractHead, Cosine, NearestClassMean, Ridge
from mtl.fewshot.model import HEAD, at_least_float32, cross_entropy, head_weights
from mtl.metagrad import tensors
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone
from mtl.networks.modulation import Modulation
from mtl.tools.comparison import Kind

Predict = Callable[[Episode], Tensor]
"""Takes an episode whose query labels are blanked, returns predicted labels ``(tasks, n_query)``."""


@dataclass(frozen=True)
class Method:
    """A named way to solve an episode.

    Args:
        name: in tables.
        predict: see :data:`Predict`.
        adapted_values: numbers fitted per task, from the number of ways.
        kind: ``"baseline"``, ``"ours"`` or ``"control"``.
    """

    name: str
    predict: Predict
    adapted_values: Callable[[int], int] = lambda ways: 0
    kind: Kind = "baseline"

    def __call__(self, episode: Episode) -> Tensor:
        """Predictions for the queries, whose labels are blanked first: no method sees them, by mistake or otherwise."""
        blank = Examples(episode.query.inputs, torch.zeros_like(episode.query.labels))
        return self.predict(replace(episode, query=blank))


@dataclass(frozen=True)
class Baseline:
    """A row of a table of baselines.

    Args:
        make: from the backbone, the value of the setting and the number of gradient steps.
        setting: name of the one setting that is worth tuning; empty where there is none.
        default: its value when it is not tuned.
        grid: the values that :func:`mtl.fewshot.tune_baselines` tries.
    """

    make: Callable[[Backbone, float, int], Method]
    setting: str = ""
    default: float = 0.0
    grid: tuple[float, ...] = ()


def baselines(
    backbone: Backbone,
    *,
    table: Mapping[str, Baseline] | None = None,
    steps: int = 50,
    centre: Tensor | None = None,
    **settings: float,
) -> list[Method]:
    """The baselines of the comparison table. Choose their settings with :func:`mtl.fewshot.tune_baselines`.

    Args:
        table: the baselines, by default all of :data:`BASELINES`.
        steps: gradient steps of the fine-tuned ones.
        centre: mean feature ``(width,)`` of the training classes; adds the centred nearest class mean.
        settings: of :data:`BASELINES`: ``c``, the inverse penalty of logistic regression, and ``l2``, the penalty of
            ridge regression, both on unit-length features; ``head_lr``, ``modulation_lr`` and ``full_lr``, Adam's step
            sizes.

    Raises:
        ValueError: for a setting that no baseline of the table has.
    """
    methods = make_methods(BASELINES if table is None else table, backbone, steps, settings)
    if centre is not None:
        methods.insert(1, _closed_form("nearest class mean, centred", backbone, NearestClassMean(), centre))
    return methods


def make_methods(
    table: Mapping[str, Baseline], backbone: Backbone, steps: int, settings: Mapping[str, float]
) -> list[Method]:
    """One method per row, at the given settings or the row's default; see :func:`baselines`."""
    if unknown := settings.keys() - {row.setting for row in table.values()}:
        known = sorted(row.setting for row in table.values() if row.setting)
        raise ValueError(f"baselines: no setting {sorted(unknown)}; expected some of {known}")
    return [row.make(backbone, settings.get(row.setting, row.default), steps) for row in table.values()]


def _features(backbone: Backbone, inputs: Inputs, modulation: Modulation | None = None) -> Tensor:
    return at_least_float32(backbone(inputs, modulation))


def _method(name: str, backbone: Backbone, predict: Predict, values: Callable[[int], int] = lambda ways: 0) -> Method:
    """Episodes are moved to wherever the backbone is when the method is called."""
    return Method(name, lambda episode: predict(episode.to(next(backbone.model.parameters()).device)), values)


def _closed_form(name: str, backbone: Backbone, head: AbstractHead, centre: Tensor | None = None) -> Method:
    @torch.no_grad()
    def predict(episode: Episode) -> Tensor:
        support = episode.support
        shift = 0.0 if centre is None else centre.to(support.labels.device)
        seen = (_features(backbone, support.inputs) - shift, support.labels)
        return head.logits(_features(backbone, episode.query.inputs) - shift, {}, seen, episode.ways).argmax(-1)

    return _method(name, backbone, predict)


def _logistic_regression(backbone: Backbone, c: float, steps: int) -> Method:
    from sklearn.linear_model import LogisticRegression  # its import takes as long as torch's

    @torch.no_grad()
    def predict(episode: Episode) -> Tensor:
        both = (episode.support.inputs, episode.query.inputs)
        seen, asked = (F.normalize(_features(backbone, x), dim=-1).cpu().numpy() for x in both)
        labels = episode.support.labels.cpu().numpy()
        models = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for x, y in zip(seen, labels, strict=True)]
        predicted = [torch.as_tensor(m.predict(x)) for m, x in zip(models, asked, strict=True)]
        return torch.stack(predicted).to(episode.support.labels.device)

    return _method("logistic regression", backbone, predict, lambda ways: ways * (backbone.width + 1))


def _head_only(backbone: Backbone, lr: float, steps: int) -> Method:
    def predict(episode: Episode) -> Tensor:
        with torch.no_grad():
            seen, asked = (Examples(_features(backbone, e.inputs), e.labels) for e in (episode.support, episode.query))
        fixed = replace(episode, support=seen, query=asked)
        return fine_tune(fixed, {}, lambda weights, inputs: inputs.tensor, lr, steps)

    return _method(f"head only, {steps} steps", backbone, predict, lambda ways: ways * backbone.width)


def _scale_and_shift(backbone: Backbone, lr: float, steps: int) -> Method:
    def features(weights: Tensors, inputs: Inputs) -> Tensor:
        return _features(backbone, inputs, Modulation(weights["scale"], weights["shift"]))

    def predict(episode: Episode) -> Tensor:
        start = Modulation.identity(episode.tasks, backbone.modulation_width, device=episode.support.labels.device)
        return fine_tune(episode, {"scale": start.scale, "shift": start.shift}, features, lr, steps)

    values = lambda ways: 2 * backbone.modulation_width + ways * backbone.width  # noqa: E731
    return _method(f"scale/shift, {steps} steps", backbone, predict, values)


def _whole_network(backbone: Backbone, lr: float, steps: int) -> Method:
    """Every weight of the network, task by task, since tasks share nothing.

    Raises:
        ValueError: when called with a backbone whose weights are not in one place.
    """

    def features(weights: Tensors, inputs: Inputs) -> Tensor:
        # Adam moves a copy, which functional_call swaps in for one forward pass: the backbone stays as it is.
        model = {k: v for k, v in weights.items() if k.startswith("model.")}
        return torch.func.functional_call(backbone, model, (inputs,)).float()

    def predict(episode: Episode) -> Tensor:
        if backbone.placement is not None:
            raise ValueError(f"full fine-tuning of {backbone.name}: its weights are sharded or spread; leave it out")
        start: Tensors = {f"model.{k}": v for k, v in backbone.model.named_parameters()}
        return fine_tune(episode, start, features, lr, steps)

    count = sum(p.numel() for p in backbone.model.parameters())
    values = lambda ways: count + ways * backbone.width  # noqa: E731
    return _method(f"full fine-tuning, {steps} steps", backbone, one_by_one(predict), values)


BASELINES: dict[str, Baseline] = {
    "ncm": Baseline(lambda b, value, steps: _closed_form("nearest class mean", b, NearestClassMean())),
    "logistic": Baseline(_logistic_regression, "c", 1.0, (1.0, 10.0, 100.0)),
    "ridge": Baseline(lambda b, l2, steps: _closed_form("ridge regression", b, Ridge(l2)), "l2", 1.0, (0.01, 0.1, 1.0)),
    "head": Baseline(_head_only, "head_lr", 0.05, (0.003, 0.01, 0.03)),
    "modulation": Baseline(_scale_and_shift, "modulation_lr", 0.02, (0.005, 0.01, 0.02)),
    "full": Baseline(_whole_network, "full_lr", 1e-3, (1e-3, 3e-3, 1e-2)),
}
"""The baselines for any backbone; ``full`` (fine-tuning of the whole network) is by far the slowest."""


def one_by_one(predict: Predict) -> Predict:
    """A batch of tasks, each on its own."""
    return lambda episode: torch.cat([predict(episode[t : t + 1]) for t in range(episode.tasks)])


def fine_tune(
    episode: Episode, start: Tensors, features: Callable[[Tensors, Inputs], Tensor], lr: float, steps: int
) -> Tensor:
    """Predicted labels after Adam on the support set.

    Adam is element-wise, so a batch of tasks moves as each would alone.

    Args:
        start: weights to tune, together with a cosine head that starts at the class means.
        features: from weights and inputs, ``(tasks, n, width)``.
        lr: Adam's step size.
        steps: gradient steps.
    """
    head, support, ways = Cosine(), episode.support, episode.ways
    with torch.no_grad():
        first = head.init(features(start, support.inputs), support.labels, ways)
    # Copies, which Adam changes in place.
    weights = tensors.leaf({k: v.clone() for k, v in (start | {HEAD + k: v for k, v in first.items()}).items()})
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        seen = (features(weights, support.inputs), support.labels)
        cross_entropy(head.support_logits(head_weights(weights), seen, ways), support.labels).sum().backward()
        optimizer.step()
    with torch.no_grad():
        asked = features(weights, episode.query.inputs)
        return head.logits(asked, head_weights(weights), (asked[:, :0], support.labels), ways).argmax(-1)
