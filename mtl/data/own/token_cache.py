"""Texts as tokens, each tokenised once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtl.data.own.row_cache import RowCache
from mtl.episode import Inputs, RawInputs

Tokenise = Callable[[list[str]], Inputs | RawInputs]
"""``n`` strings to tokens by name, each ``(n, length, ...)``, among them an ``attention_mask`` that is zero on padding.
Such as the ``preprocess`` of a loaded text backbone."""

Tokens = dict[str, Tensor]


class TokenCache:
    """Strings to tokens, the recently used ones from memory. Several task sources may share one.

    Args:
        preprocess: see :data:`Tokenise`. With ``lambda texts: backbone.with_prefix(backbone.preprocess(texts))``
            each text goes through the frozen layers below the first site only once, too.
        limit: bytes; the least recently used go first, and 0 keeps none.
    """

    def __init__(self, preprocess: Tokenise, limit: int = 2 << 30) -> None:
        self.preprocess = preprocess
        self._held = RowCache(limit)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokens ``(n, length, ...)`` by name, padded with zeros at the right to the longest of these texts."""
        found = {text: row for text in texts if isinstance(row := self._held.get(text), dict)}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            found |= zip(missing, self._preprocessed(missing), strict=True)
        rows = [found[text] for text in texts]
        return {name: pad_sequence([row[name] for row in rows], batch_first=True) for name in rows[0]}

    def _preprocessed(self, texts: list[str]) -> list[Tokens]:
        tokens = _checked(self.preprocess(texts), len(texts))
        lengths = tokens["attention_mask"].sum(1).tolist()
        # copies: a view would keep the whole batch alive after its neighbours have left the cache
        rows = [{k: v[i, :length].detach().clone() for k, v in tokens.items()} for i, length in enumerate(lengths)]
        for text, row in zip(texts, rows, strict=True):
            self._held.put(text, row)
        return rows


def _checked(made: Inputs | RawInputs, count: int) -> Tokens:
    tokens = Inputs.of(made).tensors
    if "attention_mask" not in tokens:
        got = f"tensors named {sorted(tokens)}" if "" not in tokens else "one tensor"
        raise ValueError(
            f"preprocess turned {count} texts into {got}; expected tokens by name with an attention_mask, "
            "such as the preprocess of a loaded text backbone returns"
        )
    shape = tuple(tokens["attention_mask"].shape)
    if wrong := {k: tuple(v.shape) for k, v in tokens.items() if tuple(v.shape[:2]) != shape or shape[0] != count}:
        raise ValueError(f"preprocess turned {count} texts into {wrong}; expected ({count}, length, ...) each")
    mask = tokens["attention_mask"]
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError(
            'preprocess pads at the left; set tokenizer.padding_side = "right": positions count from there'
        )
    return dict(tokens)
