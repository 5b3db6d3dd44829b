"""Texts for networks of transformers: tokens, and pooling over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from mtl.items import ItemError, Reads, as_texts
from mtl.networks.backbones.adapter import AbstractAdapter, check_pooling
from mtl.networks.backbones.hub import asking_the_hub
from mtl.networks.backbones.sentence_modules import SentenceModules
from mtl.networks.backbones.text_limits import longest_text, trained_length
from mtl.networks.readout import Positions

# Shows whether a tokenizer folds case and accents, and how it divides words.
PROBE = "Hello, WORLD!  Na\u00efve caf\u00e9\n3.50 \u20ac, don't; \u4f60\u597d"
UNLIMITED = 10**9  # tokens; tokenizers without a limit name a larger number


class HFText(AbstractAdapter):
    """Tokens for a transformers text network.

    Args:
        pooling: None is that of sentence-transformers' files, else the last token for a causal network, else the mean
            over tokens.
        max_length: tokens that are kept of a text; None is what sentence-transformers' files say, else as many as the
            network was made for and its tokenizer can take.
        tokenizer_args: of ``AutoTokenizer.from_pretrained``.
        own: what the files of sentence-transformers say.

    Attributes:
        limit: tokens beyond which the network cannot go; None where there is no such number.

    Raises:
        ValueError: an unknown pooling, or a length that the network cannot take.
    """

    reads: ClassVar[Reads] = "texts"

    def __init__(
        self,
        model: Any,
        source: str,
        pooling: str | None,
        max_length: int | None = None,
        tokenizer_args: Mapping[str, Any] | None = None,
        own: SentenceModules | None = None,
    ) -> None:
        own = own or SentenceModules()
        self.source = source
        self.tokenizer_args = dict(tokenizer_args or {})
        self.vocabulary = int(model.config.vocab_size)
        self.limit = longest_text(model)
        self.lower_case = own.lower_case
        if max_length is not None and not (
            isinstance(max_length, Integral) and 2 <= max_length <= (self.limit or max_length)
        ):
            raise ValueError(
                f"max_length={max_length}: expected 2 to {self.limit or 'any number of'} tokens, "
                f"which is what {source} can take"
            )
        chosen = max_length or (own.max_length and min(own.max_length, self.limit or own.max_length))
        self._chosen = chosen
        self.max_length = chosen or trained_length(model)
        # Decoders build a cache by default, and nothing reads it here.
        self.extra = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
        self.pooling = pooling or own.pooling or self.former_pooling(model, None)
        check_pooling(self.pooling, ("mean", "cls", "last"))

    def features(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if not isinstance(inputs, dict):
            raise ValueError("a text network takes token tensors by name: {'input_ids': ..., 'attention_mask': ...}")
        length = next(iter(inputs.values())).shape[1]
        if self.limit is not None and length > self.limit:
            raise ValueError(
                f"texts of {length} tokens: {self.source} takes {self.limit}; cut them, as backbone.preprocess does"
            )
        hidden = model(**inputs, **self.extra).last_hidden_state
        return pool_tokens(hidden, inputs.get("attention_mask"), self.pooling)

    def positions(self, model: Any) -> Positions:
        causal = self._is_causal(model)
        # The tokenizers of the T5 family put nothing before a text.
        return Positions(has_class_token=not causal and "t5" not in model.config.model_type, causal=causal)

    def reading(self, model: nn.Module) -> Mapping[str, Any]:
        return {"pooling": self.pooling, "max_length": self.max_length, "lower_case": self.lower_case}

    def former_pooling(self, model: nn.Module, pooling: str | None) -> str:
        return pooling or ("last" if self._is_causal(model) else "mean")

    def formula(self) -> str:
        """What features are, for people who compute them without mtl."""
        return f"{self.pooling} of last_hidden_state over the positions that attention_mask keeps"

    def example(self, n: int) -> dict[str, Tensor]:
        length = min(8, self.max_length or 8)
        ids = torch.randint(self.vocabulary, (n, length), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def preprocess(self, items: Sequence[Any]) -> dict[str, Tensor]:
        texts = [text.lower() for text in as_texts(items)] if self.lower_case else as_texts(items)
        limited = self.tokenizer.model_max_length < UNLIMITED
        # Some tokenizers, such as SigLIP's, give no mask unless they are asked to.
        tokens = self.tokenizer(
            texts, padding=True, return_tensors="pt", truncation=limited, return_attention_mask=True
        )
        for place in (~tokens["attention_mask"].bool().any(1)).nonzero().flatten().tolist():  # padding would be read
            raise ItemError(place, f"{texts[place]!r} has no tokens; leave it out")
        top = int(tokens["input_ids"].max())
        if top >= self.vocabulary:
            raise ValueError(f"token {top} is beyond the {self.vocabulary} that {self.source} embeds: wrong tokenizer")
        return dict(tokens)

    def preprocessing(self) -> Mapping[str, Any]:
        tokenizer = self.tokenizer
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        return {
            "tokens": len(tokenizer),
            "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16],
            "probe": tokenizer(PROBE, truncation=True)["input_ids"],
            "max_length": tokenizer.model_max_length,
        }

    @torch.no_grad()
    def _is_causal(self, model: Any) -> bool:
        """Whether all tokens are blind to the last: asking the network is surer than reading its config."""
        model.eval()
        one, other = (self.example(1) for _ in range(2))
        other["input_ids"][0, -1] = (other["input_ids"][0, -1] + 1) % self.vocabulary
        first, second = (model(**x, **self.extra).last_hidden_state[0, :-1] for x in (one, other))
        return torch.allclose(first, second, rtol=1e-5, atol=1e-6)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that lies with the weights; a ValueError says that there is none."""
        try:
            with asking_the_hub(self.source):
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.source, **self.tokenizer_args)
        except (OSError, ValueError) as e:
            raise ValueError(f"{self.source} has no usable tokenizer; pass input_ids and attention_mask instead") from e
        # Without tokenizer files AutoTokenizer makes up a vocabulary of a few special tokens and says nothing.
        if len(tokenizer) < self.vocabulary // 2:
            raise ValueError(
                f"the tokenizer of {self.source} knows {len(tokenizer)} tokens, the network {self.vocabulary}: "
                "its tokenizer files are missing; copy them there, or pass input_ids and attention_mask instead"
            )
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "right"  # absolute positions count from the left
        # An exported tokenizer cuts where this one does.
        tokenizer.model_max_length = self._chosen or min(self.max_length or UNLIMITED, tokenizer.model_max_length)
        return tokenizer


def _between(least: int, length: Any, most: int | None) -> bool:
    return isinstance(length, Integral) and least <= int(length) <= (most or int(length))


def pool_tokens(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """``(n, length, D)`` to ``(n, D)``; the mask ``(n, length)`` is 0 on padding."""
    mask = hidden.new_ones(hidden.shape[:2]) if mask is None else mask
    if pooling == "mean":
        weights = (mask / mask.sum(1, keepdim=True).clamp_min(1)).to(hidden.dtype)
        return torch.einsum("nl,nld->nd", weights, hidden)
    if pooling == "cls":
        return hidden[:, 0]
    # The last token that is not padding, whichever side the padding is on.
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
