"""How sentence-transformers reads a network: ``modules.json`` and the files that it names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

_HARMLESS = ("Transformer", "Pooling", "Normalize", "Dropout")
_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_FORMER = {  # of pooling, one switch each
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")


@dataclass(frozen=True)
class SentenceModules:
    """What the files of sentence-transformers say; None and False where there are none.

    A Normalize module is left out: features keep their length, and the cosine head divides by it itself.

    Args:
        pooling: over tokens.
        max_length: tokens that are kept of a text.
        lower_case: texts are lowered before they become tokens.
    """

    pooling: str | None = None
    max_length: int | None = None
    lower_case: bool = False


def sentence_modules(
    place: str, name: str, pooling: str | None, hub_args: Mapping[str, Any] | None = None
) -> SentenceModules:
    """Read them from a folder or the hub.

    Args:
        place: folder, or id of the hub; or the folder of the network inside that of all modules.
        name: of the network, for messages.
        pooling: that was asked for, and then the network's own need not be known here.
        hub_args: ``revision`` and the like.

    Raises:
        ValueError: features that mtl does not compute: by another pooling, or by layers behind the pooling.
    """
    read, paths = partial(_read, place, hub_args or {}), _paths(_read(place, hub_args or {}, "modules.json"))
    if not paths and Path(place).is_dir():
        parent = str(Path(place).resolve().parent)
        read, paths = partial(_read, parent, {}), _paths(_read(parent, {}, "modules.json"))
        if paths.get("Transformer") != Path(place).resolve().name:
            return SentenceModules()
    if pooling is None and (others := [kind for kind in paths if kind not in _HARMLESS]):
        raise ValueError(
            f"{name} ends in {', '.join(others)} of sentence-transformers, which mtl does not have: pooling='mean', "
            "'cls' or 'last' reads the network before it"
        )
    if pooling is None and "Pooling" in paths:
        pooling = _pooling(name, read(f"{paths['Pooling']}/config.json") or {})
    folder = f"{paths['Transformer']}/" if paths.get("Transformer") else ""
    found = (read(f"{folder}sentence_{kind}_config.json") for kind in _KINDS)
    settings = next((x for x in found if isinstance(x, dict)), {})
    _warn_of_prompt(read("config_sentence_transformers.json") or {}, name)
    return SentenceModules(pooling, settings.get("max_seq_length"), bool(settings.get("do_lower_case", False)))


def _pooling(name: str, config: Mapping[str, Any]) -> str:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for switch, mode in _FORMER.items() if config.get(switch)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ValueError(
            f"{name} pools by {' and '.join(modes)}, which mtl does not have: choose pooling='mean', 'cls' or 'last'"
        )
    return _POOLINGS[modes[0]]


def _paths(modules: Any) -> dict[str, str]:
    """Folders of modules by kind; none where there is no list of them."""
    if not isinstance(modules, list):
        return {}
    return {str(m.get("type", "")).rpartition(".")[2]: str(m.get("path", "")) for m in modules}


def _warn_of_prompt(config: Mapping[str, Any], name: str) -> None:
    prompts = config.get("prompts") or {}
    if prompt := prompts.get(config.get("default_prompt_name")):
        warnings.warn(
            f"sentence-transformers puts {prompt!r} before every text of {name}, and mtl does not: write it there "
            "yourself",
            stacklevel=2,
        )


def _read(place: str, hub_args: Mapping[str, Any], file: str) -> Any:
    """The content of a JSON file; None where there is none."""
    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(place, file, **hub_args, **quietly)
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{found} is damaged ({e}); fetch it again") from e
