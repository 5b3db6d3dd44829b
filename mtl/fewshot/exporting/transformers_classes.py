"""A transformers network with its classifier inside, for the classes whose own head can compute exactly that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mtl.fewshot.exporting.plain import Plain
from mtl.networks.backbones import HFImages, HFText

TASKS = {"texts": "text-classification", "images": "image-classification"}
"""What transformers calls the pipeline of a network, by what the network reads."""
_TOLERANCE = 1e-4  # of the largest logit; another pooling or activation is off by all of it
_STRAIGHT = 2.0**-12  # tanh(x) / x is 1 to float32's rounding where x is smaller


class NoSuchClassError(Exception):
    """No class of transformers computes the classifier; the message says why."""


@dataclass(frozen=True)
class Whole:
    """A network that gives logits.

    Args:
        model: of a class ``...ForSequenceClassification`` or ``...ForImageClassification``, classifier filled in.
        auto: the name of the class of transformers that loads it.
        head: modules that hold the classifier, outermost only.
    """

    model: Any
    auto: str
    head: tuple[str, ...]


def with_classifier(plain: Plain, names: Sequence[str], folder: Path) -> Whole:
    """The network of a folder that ``save_pretrained`` wrote, with the classifier in the place that its class has.

    A class is taken if one of the ways of filling its head gives the classifier's logits on examples.

    Args:
        plain: network and classifier.
        names: of the classes, for ``id2label``.
        folder: holds the network without classifier.

    Raises:
        NoSuchClassError: none does.
    """
    adapter = plain.backbone.adapter
    assert isinstance(adapter, HFImages | HFText)
    text = isinstance(adapter, HFText)
    auto = "AutoModelForSequenceClassification" if text else "AutoModelForImageClassification"
    model = _load(auto, folder, names)
    layers = _linear_layers(model)
    inputs = plain.backbone.example_inputs(4).to("cpu")
    wanted = plain.logits(inputs, plain.model)
    if text and model.config.pad_token_id is None:
        model.config.pad_token_id = _padding(plain)
    for fill in _fills(layers, plain.weight, plain.bias, float(wanted.abs().max())):
        for layer, (weight, bias) in zip(layers.values(), fill, strict=True):
            _write(layer, weight, bias)
        found = _logits(model, inputs.raw)
        if found.shape == wanted.shape and bool((found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()):
            return Whole(model, auto, _outermost(model, layers))
    no_bias = next(reversed(layers.values())).bias is None if layers else False
    missing = " and a bias, which its classifier has not" if no_bias and plain.bias.any() else ""
    raise NoSuchClassError(f"{type(model).__name__} does not classify {adapter.formula()}{missing}")


def logits_of(model: Any, inputs: Any) -> Tensor:
    """Logits ``(n, ways)`` of token tensors by name, or of images."""
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return (found if isinstance(found, Tensor) else found.logits).float()


def _logits(model: Any, inputs: Any) -> Tensor:
    """None that compare equal where the class cannot read these inputs."""
    try:
        return logits_of(model, inputs)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise NoSuchClassError(f"{type(model).__name__} does not take such inputs ({error})") from error


def _load(auto: str, folder: Path, names: Sequence[str]) -> Any:
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a new classifier is what is wanted, and no reason for a warning
    try:
        model: Any = getattr(transformers, auto).from_pretrained(folder, num_labels=len(names), **labels)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoSuchClassError(f"transformers has no {auto} for it ({str(error).splitlines()[0][:80]})") from error
    finally:
        transformers.logging.set_verbosity(level)
    return model.float().eval()


def _linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Those of the head, in the order in which they are called; a pooler of the network counts as one of the head."""
    base = f"{model.base_model_prefix}."
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (not name.startswith(base) or "pooler" in name.split("."))
    }


def _outermost(model: Any, layers: dict[str, nn.Linear]) -> tuple[str, ...]:
    base = f"{model.base_model_prefix}."
    own = {name.split(".")[0] if not name.startswith(base) else ".".join(name.split(".")[:2]) for name in layers}
    return tuple(sorted(own))


Filling = list[tuple[Tensor, Tensor]]


def _fills(layers: dict[str, nn.Linear], weight: Tensor, bias: Tensor, largest: float) -> Iterator[Filling]:
    """Weights and biases for the linear layers of a head that may amount to the classifier."""
    linear, ways, width = list(layers.values()), len(bias), weight.shape[1]
    zero = torch.zeros(ways)
    if not linear or linear[-1].out_features != ways:
        return
    if len(linear) == 1:
        # Some classes read class token and mean of the patches side by side.
        for start in range(0, linear[0].in_features - width + 1, width):
            yield [(_padded(weight, (ways, linear[0].in_features), start), bias)]
    if len(linear) == 2 and linear[0].in_features == width:
        hidden = linear[0].out_features
        both, signs = torch.cat([weight, -weight]), torch.cat([torch.eye(ways), -torch.eye(ways)], 1)
        # relu(x) - relu(-x) is x, and so it is for GELU and SiLU.
        if 2 * ways <= hidden:
            first = (_padded(both, (hidden, width)), _padded(torch.cat([bias, -bias]), (hidden,)))
            yield [first, (_padded(signs, (ways, hidden)), zero)]
        # tanh is straight near zero.
        if ways <= hidden:
            small = _STRAIGHT / 2 ** math.ceil(math.log2(max(largest, 1e-6)))
            first = (_padded(small * weight, (hidden, width)), _padded(small * bias, (hidden,)))
            yield [first, (_padded(torch.eye(ways) / small, (ways, hidden)), zero)]


def _padded(values: Tensor, shape: tuple[int, ...], start: int = 0) -> Tensor:
    """Zeros, with the values from the first row on, and from column ``start``."""
    out = torch.zeros(shape)
    if values.dim() == 1:
        out[: len(values)] = values
    else:
        out[: len(values), start : start + values.shape[1]] = values
    return out


def _write(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.data.copy_(weight)
    if layer.bias is not None:
        layer.bias.data.copy_(bias)


def _padding(plain: Plain) -> int | None:
    """The padding token, which the classes of causal networks look for to find the last token."""
    adapter = plain.backbone.adapter
    try:
        return adapter.tokenizer.pad_token_id if isinstance(adapter, HFText) else None
    except ValueError:
        return None
