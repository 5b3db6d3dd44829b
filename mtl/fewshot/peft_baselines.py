"""LoRA and IA3 through the ``peft`` library: what most people would try on a transformers network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtl.episode import Episode, Inputs
from mtl.fewshot.baselines import Method, adam
from mtl.fewshot.heads import Cosine
from mtl.fewshot.model import cross_entropy
from mtl.metagrad import tensors
from mtl.networks.backbones import Backbone


def peft_baselines(
    backbone: Backbone, *, rank: int = 8, lora_lr: float = 3e-3, ia3_lr: float = 3e-2, steps: int = 50
) -> list[Method]:
    """LoRA and IA3, fitted anew to every task together with a cosine head that starts at the class means.

    Needs ``pip install "mtl[text]"``. The layers are those that peft adapts by default.

    Args:
        backbone: a network of transformers.
        rank: of LoRA's matrices.
        lora_lr, ia3_lr: Adam step sizes, to be chosen on validation tasks, see :func:`mtl.fewshot.tune`.
        steps: gradient steps per task.

    Raises:
        ImportError: without peft.
        ValueError: for a family that peft has no default layers for.
    """
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('LoRA and IA3 need the library peft: pip install "mtl[text]"') from error
    configs = {
        f"LoRA, {steps} steps": (peft.LoraConfig(r=rank, lora_alpha=2 * rank), lora_lr),
        f"IA3, {steps} steps": (peft.IA3Config(), ia3_lr),
    }
    return [_method(name, backbone, config, lr, steps) for name, (config, lr) in configs.items()]


def _method(name: str, backbone: Backbone, config: Any, lr: float, steps: int) -> Method:
    model = _injected(backbone, config)
    start = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in start.values())
    fit = _fitted(backbone, model, start, lr, steps)
    predict = lambda e: torch.cat([fit(e[t : t + 1]) for t in range(e.tasks)])  # noqa: E731
    return Method(name, predict, lambda ways: count + ways * backbone.width)


def _injected(backbone: Backbone, config: Any) -> nn.Module:
    """A copy of the network with peft's layers in it, which alone are trainable."""
    import peft  # pyright: ignore[reportMissingImports]
    from peft.utils import constants  # pyright: ignore[reportMissingImports]

    network: Any = backbone.model
    kind = network.config.model_type if isinstance(network, transformers.PreTrainedModel) else "timm"
    scales = type(config) is peft.IA3Config
    known = f"TRANSFORMERS_MODELS_TO_{'IA3' if scales else 'LORA'}_TARGET_MODULES_MAPPING"
    targets: dict[str, list[str]] = getattr(constants, known)
    if kind not in targets:
        raise ValueError(f"{backbone.name}: peft knows no layers of the family {kind!r}; leave this method out")
    config = copy.copy(config)
    config.target_modules = set(targets[kind])
    config.fan_in_fan_out = any(isinstance(m, Conv1D) for m in network.modules())  # GPT-2 stores transposes
    if scales:
        config.feedforward_modules = set(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind])
    return peft.inject_adapter_in_model(config, copy.deepcopy(network)).eval()


def _fitted(
    backbone: Backbone, model: nn.Module, start: tensors.Tensors, lr: float, steps: int
) -> Callable[[Episode], Tensor]:
    head, call = Cosine(), _Features(backbone, model)

    def features(weights: tensors.Tensors, inputs: Inputs) -> Tensor:
        own = {f"model.{k}": weights[k] for k in start}
        return torch.func.functional_call(call, own, (inputs.flatten(),)).unsqueeze(0)

    def predict(episode: Episode) -> Tensor:
        episode = episode.to(next(model.parameters()).device)
        support, ways = episode.support, episode.ways
        with torch.no_grad():
            first = head.init(features(start, support.inputs), support.labels, ways)
        weights = {k: v.clone().requires_grad_() for k, v in (start | first).items()}

        def loss(w: tensors.Tensors) -> Tensor:
            seen = features(w, support.inputs)
            return cross_entropy(head.support_logits(w, (seen, support.labels), ways), support.labels)

        adam(weights, loss, lr, steps)
        with torch.no_grad():
            asked = features(weights, episode.query.inputs)
            return head.logits(asked, weights, (asked[:, :0], support.labels), ways).argmax(-1)

    return predict


class _Features(nn.Module):
    """The network and its pooling as one module, for ``functional_call``."""

    def __init__(self, backbone: Backbone, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.features = backbone.features

    def forward(self, inputs: Inputs) -> Tensor:
        return self.features(inputs, self.model).float()
