"""All that the result of a training run depends on, setting by setting."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtl.fewshot.generators import AbstractGenerator
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.saving import inner_options
from mtl.fewshot.training.config import TrainingConfig
from mtl.metagrad.estimators import AbstractEstimator
from mtl.tools.identity import as_json, digest, sketch

MAY_CHANGE = ("tasks_per_chunk", "save_every", "workers", "patience", "self_check")
"""Settings of :class:`TrainingConfig` that may change within a run; so may processes, devices, and how the backbone
saves memory. Everything else is compared."""
_asked: weakref.WeakKeyDictionary[MetaLearner, tuple[AbstractEstimator, AbstractEstimator]]
_asked = weakref.WeakKeyDictionary()  # learners whose estimator was calibrated: what it is, and what was asked for


def fingerprint(learner: MetaLearner, config: TrainingConfig, begins: str = "") -> dict[str, Any]:
    """The identity of a run but for its tasks, as JSON gives it back.

    Args:
        begins: what tells the generator's first weights, where it is not the weights that were loaded into it.

    Raises:
        ValueError: a part of the learner could not be recognised when the run is resumed.
    """
    settings: dict[str, Any] = {k: v for k, v in asdict(config).items() if k not in MAY_CHANGE}
    estimator = estimator_asked_for(learner)
    settings |= {
        "generator": describe("generator", learner.generator.options, type(learner.generator).__name__),
        "generator_begins": begins or learner.generator.given,
        "frozen": [name for name, p in learner.generator.named_parameters() if not p.requires_grad],
        "statistics": _statistics(learner.generator),
        "head": describe("head", learner.head),
        "inner_steps": learner.inner_steps,
        "inner_optimizer": describe("inner_optimizer", inner_options(learner), type(learner.optimizer).__name__),
        "estimator": describe("estimator", estimator),
        "calibrated": config.self_check and getattr(estimator, "pull", None) == "finite-difference",
        "lite_examples": learner.lite_examples,
        "precision": str(learner.backbone.options.precision),
        "backbone": {k: v for k, v in learner.backbone.identity().items() if k != "weights"},
    }
    return as_json(settings)


def describe(role: str, value: Any, kind: str | None = None) -> Any:
    """A value as JSON holds it: dataclasses by their fields, tensors and modules by a digest.

    Args:
        role: for the message.
        kind: name of the class that has these options.

    Raises:
        ValueError: nothing tells the value from others of its class.
    """
    told = " at 0x" not in (text := repr(value))  # no address in memory, which another process does not have
    if is_dataclass(value) and told:
        # A subclass that is no dataclass itself may have more of its own.
        own = {} if "__dataclass_fields__" in vars(type(value)) else vars(value)
        options = {f.name: getattr(value, f.name) for f in fields(value)} | own
        return describe(role, options, type(value).__name__)
    if isinstance(value, Mapping):
        named = {} if kind is None else {"kind": kind}
        return named | {str(k): describe(role, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(role, v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return digest(value)
    if isinstance(value, nn.Module):
        return {"kind": type(value).__name__, "weights": digest(dict(value.state_dict()))}
    if not told:
        way_out = "make its class a dataclass, or give it a __repr__ that tells its options"
        raise ValueError(f"the {role} {text} could not be recognised when the run is resumed; {way_out}")
    return text


def estimator_asked_for(learner: MetaLearner) -> AbstractEstimator:
    """The learner's estimator as it was before an earlier run calibrated it."""
    calibrated, asked = _asked.get(learner, (None, learner.estimator))
    return asked if calibrated is learner.estimator else learner.estimator


def calibrate(learner: MetaLearner, estimator: AbstractEstimator) -> None:
    """Give the learner a calibrated estimator in the place of the one that was asked for."""
    asked = estimator_asked_for(learner)
    learner.estimator = estimator
    _asked[learner] = (estimator, asked)


def _statistics(generator: AbstractGenerator) -> dict[str, Any]:
    """What the generator knows of the features from the start, up to rounding."""
    own = dict(generator.named_parameters())
    return {k: sketch(v.to(torch.float64)) for k, v in generator.state_dict().items() if k not in own}
