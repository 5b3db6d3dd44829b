"""LoRA and IA3 through the ``peft`` library, the usual choice on a transformers network."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtl.episode import Episode, Inputs
from mtl.fewshot.baselines import (
    BASELINES,
    Baseline,
    Method,
    Setup,
    choose_rows,
    fine_tune,
    in_chunks,
    make_methods,
    one_by_one,
    require_network_inputs,
    tasks_at_once,
)
from mtl.fewshot.per_task_layers import adapt_per_task
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone


def peft_baselines(backbone: Backbone, *, steps: int = 50, **settings: float) -> list[Method]:
    """LoRA and IA3, fitted anew to every task together with a cosine head that starts at the class means.

    Many tasks at once, each with weights of its own. Needs ``pip install "mtl[text]"``. The layers are those that peft
    adapts by default; LoRA's matrices have rank 8.

    Args:
        backbone: a network of transformers.
        steps: gradient steps per task.
        settings: ``lora_lr`` and ``ia3_lr``, Adam's step sizes, see :func:`mtl.fewshot.tune_baselines`.

    Raises:
        ImportError: without peft.
        ValueError: for a family that peft has no default layers for.
    """
    return make_methods(PEFT_BASELINES, Setup(backbone, steps), settings)


def _method(name: Literal["LoRA", "IA3"], setup: Setup, lr: float) -> Method:
    backbone, last = setup.backbone, setup.last
    model = adapted_copy(backbone, name)
    start = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    count, call = sum(p.numel() for p in start.values()), _Features(backbone, model)
    together = adapt_per_task(model, lambda n: call(backbone.example_inputs(n)))

    def features(weights: Tensors, inputs: Inputs) -> Tensor:
        own = {f"model.{k}": weights[k] for k in start}
        found = torch.func.functional_call(call, own, (inputs.flatten(),))
        return found[..., last].unflatten(0, (inputs.shape[0], -1))

    def logits(episode: Episode) -> Tensor:
        require_network_inputs(name, episode)
        of_tasks = {k: v.expand(episode.tasks, *v.shape) for k, v in start.items()}
        return fine_tune(episode.to(next(model.parameters()).device), of_tasks, features, lr, setup.steps)

    values = lambda ways: count + ways * setup.levels[-1]  # noqa: E731
    solve = in_chunks(logits, tasks_at_once) if together else one_by_one(logits)
    return setup.method(f"{name}, {setup.steps} steps", solve, values)


PEFT_BASELINES: dict[str, Baseline] = {
    "lora": Baseline(partial(_method, "LoRA"), "lora_lr", 3e-3, (1e-3, 3e-3, 1e-2)),
    "ia3": Baseline(partial(_method, "IA3"), "ia3_lr", 3e-2, (1e-2, 3e-2, 1e-1)),
}
"""The baselines of peft, for ``baselines(table=...)`` and ``tune_baselines(table=...)``."""


def choose_baselines(*keys: str) -> dict[str, Baseline]:
    """Rows of :data:`mtl.fewshot.BASELINES` and :data:`PEFT_BASELINES` by key, in the order given.

    Raises:
        ValueError: for a key that there is not, with those that look like it.

    >>> list(choose_baselines("ridge", "lora"))
    ['ridge', 'lora']
    """
    return choose_rows(keys, BASELINES | PEFT_BASELINES)


def adapted_copy(backbone: Backbone, name: Literal["LoRA", "IA3"]) -> nn.Module:
    """A copy of the network with peft's layers in it, which alone are trainable."""
    try:
        import peft  # pyright: ignore[reportMissingImports]
        from peft.utils import constants  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('LoRA and IA3 need the library peft: pip install "mtl[text]"') from error
    network: Any = backbone.model
    kind = network.config.model_type if isinstance(network, transformers.PreTrainedModel) else "timm"
    targets: dict[str, list[str]] = getattr(constants, f"TRANSFORMERS_MODELS_TO_{name.upper()}_TARGET_MODULES_MAPPING")
    if kind not in targets:
        raise ValueError(f"{backbone.name}: peft knows no layers of the family {kind!r}; leave this method out")
    config: Any = peft.IA3Config() if name == "IA3" else peft.LoraConfig(r=8, lora_alpha=16)
    config.target_modules = set(targets[kind])
    config.fan_in_fan_out = any(isinstance(m, Conv1D) for m in network.modules())  # GPT-2 stores transposes
    if name == "IA3":
        config.feedforward_modules = set(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind])
    device = next(network.parameters()).device
    # The same start in every process, whatever was drawn before.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return peft.inject_adapter_in_model(config, copy.deepcopy(network)).eval()


class _Features(nn.Module):
    """The network and its pooling as one module, for ``functional_call``."""

    def __init__(self, backbone: Backbone, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.features = backbone.features

    def forward(self, inputs: Inputs) -> Tensor:
        return self.features(inputs, self.model).float()
