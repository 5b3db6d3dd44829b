"""Pretrain a small text encoder from nothing on the standard library's docstrings and comments, without a hub.

    python recipes/assets/pretrain_docstrings.py --out runs/docstring_encoder

Two minutes on two idle cores. Modules of the validation and test parts are not read. Two texts of one source file
should lie closer than texts of other files (InfoNCE, arXiv 1807.03748), with a tenth of the words left out.
few_shot_text.py calls this when no backbone is named.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers import BertWordPieceTokenizer
from tokenizers.models import WordPiece
from torch import Tensor

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, Folder, Positive, Seed, Share
from mtl.data.embedded.docstrings import all_texts
from mtl.tools.files import atomic_folder, check_free
from mtl.tools.progress import ProgressBar

MADE = "pretraining.json"  # in the folder: the settings that made it


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/docstring_encoder"  # output folder; reused when it was made with the same settings
    layers: Count = 2  # layers of the encoder
    width: Count = 128  # width of its features
    vocabulary: Count = 6000  # number of word pieces
    length: Count = 32  # tokens that are read of each text
    steps: Count = 600  # optimiser steps
    batch: Count = 64  # pairs of texts per step
    temperature: Positive = 0.1  # temperature of the cosine similarities
    dropped: Share = 0.1  # share of words left out at random
    lr: Positive = 2e-3  # peak learning rate of the one-cycle schedule
    seed: Seed = 0  # seed of the split, the weights and the pairs


def main(config: Config) -> Path:
    """The folder of the encoder, which is trained unless it is there."""
    out = Path(config.out)
    made = out / MADE
    settings = {k: v for k, v in asdict(config).items() if k != "out"}
    if made.is_file() and json.loads(made.read_text())["settings"] == settings:
        return out
    check_free(out)
    split = mtl.data.docstring_split(config.seed)
    groups: dict[str, list[str]] = {}
    for docstring in all_texts(without={*split.val, *split.test}):
        groups.setdefault(docstring.file, []).append(docstring.text)
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer([text for texts in groups.values() for text in texts], config)
    model = make_model(tokenizer, config)
    loss = train(model, tokenizer, [texts for texts in groups.values() if len(texts) > 1], config)
    with atomic_folder(out) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        facts = {"settings": settings, "loss": loss, "texts": sum(map(len, groups.values()))}
        (draft / MADE).write_text(json.dumps(facts, indent=2) + "\n")
    return out


def make_tokenizer(texts: list[str], config: Config) -> transformers.PreTrainedTokenizerFast:
    """Word pieces of these texts, the same ones every time."""
    special = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    pieces = BertWordPieceTokenizer()
    rest = sorted({f"##{letter}" for text in texts for letter in pieces._tokenizer.normalizer.normalize_str(text)})
    # Pieces inside words are numbered as they are met, in an order that differs from process to process, and the
    # numbers decide which of two equally frequent pairs is merged. Special tokens are numbered first, in their order.
    pieces.train_from_iterator(
        texts, vocab_size=config.vocabulary, special_tokens=[*special.values(), *rest], show_progress=False
    )
    plain = BertWordPieceTokenizer()._tokenizer  # in which they are special no more
    plain.model = WordPiece(pieces.get_vocab(), unk_token=special["unk"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        model_max_length=config.length,
        **{f"{name}_token": token for name, token in special.items()},
    )


def make_model(tokenizer: transformers.PreTrainedTokenizerFast, config: Config) -> transformers.BertModel:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // 32,
            intermediate_size=2 * config.width,
            max_position_embeddings=config.length,
        ),
        add_pooling_layer=False,
    )


def train(
    model: transformers.BertModel,
    tokenizer: transformers.PreTrainedTokenizerFast,
    groups: list[list[str]],
    config: Config,
) -> float:
    """One cycle of AdamW; the mean loss of the last fifty steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    model.train()
    losses = []
    progress = ProgressBar(
        zip(range(config.steps), pairs(groups, config), strict=False), total=config.steps, desc="pretrain"
    )
    for _, (left, right) in progress:
        tokens = tokenizer(left + right, padding=True, truncation=True, return_tensors="pt")
        loss = contrastive(mean_pooled(model, dict(tokens)), config.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.2f}")
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def pairs(groups: list[list[str]], config: Config) -> Iterator[tuple[list[str], list[str]]]:
    """Endless batches of pairs, each pair from another file: what is not a pair does not belong together."""
    rng = random.Random(config.seed)
    weights = [len(texts) ** 0.5 for texts in groups]
    while True:
        chosen = sorted(range(len(groups)), key=lambda i: rng.random() ** (1 / weights[i]))[-config.batch :]
        both = [rng.sample(groups[i], 2) for i in chosen]
        left, right = ([thinned(pair[side], config.dropped, rng) for pair in both] for side in (0, 1))
        yield left, right


def thinned(text: str, dropped: float, rng: random.Random) -> str:
    words = text.split()
    return " ".join(w for w in words if rng.random() >= dropped) or text


def mean_pooled(model: transformers.BertModel, tokens: dict[str, Tensor]) -> Tensor:
    """``(n, width)``, as mtl pools an encoder."""
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def contrastive(features: Tensor, temperature: float) -> Tensor:
    """Cross entropy of finding each text's partner, in both directions; the first half are partners of the second."""
    left, right = F.normalize(features, dim=-1).chunk(2)
    similar = left @ right.T / temperature
    partner = torch.arange(len(left))
    return (F.cross_entropy(similar, partner) + F.cross_entropy(similar.T, partner)) / 2


if __name__ == "__main__":
    answer(lambda config: print(main(config)), Config)
