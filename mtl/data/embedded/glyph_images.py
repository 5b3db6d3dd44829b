"""Labelled images of the letters of whole scripts, for ordinary classification: one label per letter, no episodes.

Every round shows each letter once on one document (:class:`~mtl.data.embedded.scans.Document`), in a typeface
drawn for each image. The shipped backbone was pretrained on Latin letters on clean pages: it has seen neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from mtl.data.embedded.glyph_drawing import MEAN, STD, any_typeface, load_bank, typeset
from mtl.data.embedded.glyphs import SCRIPTS, Split, load_scripts
from mtl.data.embedded.scans import Document


def letter_images(scripts: Sequence[str], each: int, seed: int) -> tuple[Tensor, Tensor]:
    """``each`` images of every letter of some scripts of one split.

    Args:
        scripts: such as ``("georgian", "armenian")``, keys of :data:`mtl.data.embedded.glyphs.SCRIPTS`.
        each: images per letter, at least 1.
        seed: any non-negative integer; another one gives other images of the same letters.

    Returns:
        Images ``(each * letters, 1, 32, 32)``, normalised as for the shipped backbone, and labels, round by round.

    Raises:
        ValueError: for no or an unknown script, scripts of several splits, or less than one image each.
    """
    if not scripts:
        raise ValueError(f"scripts=(): name at least one script of {', '.join(SCRIPTS)}")
    if unknown := [s for s in scripts if s not in SCRIPTS]:
        raise ValueError(f"scripts={list(scripts)}: {unknown} are none of {', '.join(SCRIPTS)}")
    if each < 1:
        raise ValueError(f"each={each}: expected at least one image of every letter")
    splits: set[Split] = {SCRIPTS[s].split for s in scripts}
    if len(splits) != 1:
        raise ValueError(f"scripts={list(scripts)} are of the splits {sorted(splits)}; take scripts of one")
    split = splits.pop()
    bank, names = load_bank(split), [s.name for s in load_scripts(split)]
    letters = np.flatnonzero(np.isin(bank.script, [names.index(s) for s in scripts]))
    rounds = [_page(split, letters, np.random.default_rng([seed, i])) for i in range(each)]
    return torch.cat(rounds), torch.arange(len(letters)).repeat(each)


def _page(split: Split, letters: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Every letter once, upright on one document."""
    file, style = any_typeface(split, letters, rng)
    generator = Generator().manual_seed(int(rng.integers(2**62)))
    document = Document.draw(generator)
    ink = typeset(split, letters, file, style, torch.full((len(letters),), document.skew), generator)
    return (document.apply(ink, generator) - MEAN) / STD
