"""Files of weights for networks of timm, loaded whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import load_checkpoint, load_state_dict
from torch import Tensor, nn

_COUNTERS = "num_batches_tracked"  # of batch norms; files from before they had them are complete without


def load_from_file(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into a network.

    As timm does: the weights may be wrapped (``state_dict``, ``model``, an average of weights, ``module.``), lack the
    counters of batch norms, and belong to another image size; then position embeddings are interpolated.

    Raises:
        ValueError: there is no such file, it cannot be read, or it is of another network.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint={str(path)!r} is not a file")
    try:
        if path.suffix in (".npz", ".npy"):
            load_checkpoint(model, str(path))
            return
        state = load_state_dict(str(path))
    except Exception as e:  # pickle, zip, safetensors and numpy have errors of their own
        reason = " ".join(str(e).split())[:160]
        raise ValueError(f"checkpoint={str(path)!r} cannot be read ({type(e).__name__}: {reason})") from e
    state = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    load_strictly(model, state if _fits(model, state) else _converted(model, state), path.name)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """timm's own loading with ``num_classes=0`` ignores every key that does not match; here the classifier's only.

    Args:
        source: what the weights are from, for the message.

    Raises:
        ValueError: keys or shapes differ.
    """
    missing, unexpected, shapes = _mismatch(model, state)
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit {type(model).__name__}: missing {missing[:3]} ({len(missing)}), "
            f"unexpected {unexpected[:3]} ({len(unexpected)}), other shapes {shapes[:3]} ({len(shapes)}); "
            "pass the model_args it was trained with, such as img_size or in_chans"
        )
    model.load_state_dict(_without_classifier(model, state), strict=False)


def _mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names that the state lacks, that the network lacks, and whose shapes differ."""
    state, own = _without_classifier(model, state), model.state_dict()
    missing = sorted(k for k in own.keys() - state.keys() if not k.endswith(f".{_COUNTERS}"))
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    return missing, sorted(state.keys() - own.keys()), shapes


def _fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return not any(_mismatch(model, state))


def _without_classifier(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    head: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    return {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the module of timm that defines the network converts older names and other image sizes, if it does."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        found = state if convert is None else convert(dict(state), model)
    except Exception:  # of a network that it was not written for; the mismatch of names says more
        return state
    return found if _fits(model, found) else state
