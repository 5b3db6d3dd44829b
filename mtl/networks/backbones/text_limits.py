"""How long a text may be: the positions that a network of transformers has."""

from __future__ import annotations

from typing import Any

from torch import nn

_LIMITS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")  # of configs


def trained_length(model: Any) -> int | None:
    """Tokens of the longest text that the network was made for; None where its config names none, as that of T5."""
    named = (getattr(model.config, name, None) for name in _LIMITS)
    found = [value for value in named if isinstance(value, int) and value > 0]
    return min([*found[:1], *_offset_tables(model)], default=None)


def longest_text(model: Any) -> int | None:
    """Tokens beyond which the network cannot go, or was never meant to; None for distances without a table."""
    relative = not getattr(model.config, "position_biased_input", True)  # DeBERTa-v2
    if relative or getattr(model.config, "alibi", False):
        return None
    return trained_length(model)


def _offset_tables(model: nn.Module) -> list[int]:
    """Usable rows of tables of positions as RoBERTa has them: the first token stands behind the row of padding."""
    tables = [m for name, m in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
    rows = [(getattr(m, "weight", None), getattr(m, "padding_idx", None)) for m in tables]
    return [len(weight) - padding - 1 for weight, padding in rows if weight is not None and padding is not None]
