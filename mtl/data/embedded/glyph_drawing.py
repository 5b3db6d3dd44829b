"""Drawing letters with given attributes: character, typeface, orientation and defect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor

from mtl.data.embedded.glyphs import Split, load_scripts
from mtl.data.embedded.scans import ANGLES, DEFECTS, SLANTS, STYLES, WIDTHS, Document, damage, place, weights

MEAN, STD = 0.7, 0.3  # pixels are normalised to (pixel - MEAN) / STD, in episodes and in pretraining alike


@dataclass(frozen=True)
class Attributes:
    """Attributes of ``n`` images: ``(n,)`` indices into the split's characters, the character's font files, and the
    split's :data:`STYLES`, :data:`ANGLES` and :data:`DEFECTS`. A typeface is a pair (file, style)."""

    character: np.ndarray
    file: np.ndarray
    style: np.ndarray
    orientation: np.ndarray
    defect: np.ndarray

    def columns(self) -> tuple[np.ndarray, ...]:
        return self.character, self.file, self.style, self.orientation, self.defect


@dataclass(frozen=True)
class Bank:
    """All letters of a split in one list.

    Args:
        masters: ``(rows, weights, 64, 64)`` uint8; file ``f`` of character ``c`` is row ``first_row[c] + f``.
        script: ``(characters,)`` index into the split's scripts.
        files: ``(characters,)`` number of font files.
        orientable: ``(characters,)`` bool.
    """

    masters: Tensor
    first_row: np.ndarray
    script: np.ndarray
    files: np.ndarray
    orientable: np.ndarray


@cache
def load_bank(split: Split) -> Bank:
    """The letters of a split, rendered on first use."""
    scripts = load_scripts(split)
    counts = [len(s.characters) for s in scripts]
    files = np.repeat([len(s.files) for s in scripts], counts)
    return Bank(
        masters=weights(torch.cat([s.masters.flatten(0, 1) for s in scripts])),
        first_row=np.cumsum(files) - files,
        script=np.repeat(np.arange(len(scripts)), counts),
        files=files,
        orientable=torch.cat([s.orientable for s in scripts]).numpy(),
    )


def draw_images(split: Split, attributes: Attributes, document: Document, generator: Generator) -> Tensor:
    """Normalised images ``(n, 1, 32, 32)`` with the given attributes."""
    degrees = torch.tensor(ANGLES[split])[torch.from_numpy(attributes.orientation)] + document.skew
    ink = typeset(split, attributes.character, attributes.file, attributes.style, degrees, generator)
    ink = damage(ink, [DEFECTS[split][i] for i in attributes.defect], generator)
    return (document.apply(ink, generator) - MEAN) / STD


def typeset(
    split: Split, character: np.ndarray, file: np.ndarray, style: np.ndarray, degrees: Tensor, generator: Generator
) -> Tensor:
    """Letters on no page yet, ``(n, 1, 32, 32)``: indices as in :class:`Attributes`, and by how much each is turned."""
    bank = load_bank(split)
    rows = torch.from_numpy(bank.first_row[character] + file)
    weight, slant, width = _style_columns(split, style)
    return place(bank.masters[rows, weight], slant, width, degrees, generator)


def any_typeface(split: Split, character: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """File and style for each character, drawn independently."""
    return rng.integers(load_bank(split).files[character]), rng.integers(len(STYLES[split]), size=len(character))


def _style_columns(split: Split, chosen: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Weight index, slant and width, ``(n,)`` each, of the chosen styles."""
    table = torch.tensor([(s.weight, SLANTS[s.slant], WIDTHS[s.width]) for s in STYLES[split]])[
        torch.from_numpy(chosen)
    ]
    return table[:, 0].long(), table[:, 1], table[:, 2]


def labelled_images(split: Split, n: int, rng: np.random.Generator) -> tuple[Tensor, Attributes]:
    """Independent images on clean pages with all their attributes, for pretraining; ``(n, 1, 32, 32)``."""
    bank = load_bank(split)
    character = rng.integers(len(bank.script), size=n)
    file, style = any_typeface(split, character, rng)
    attributes = Attributes(
        character=character,
        file=file,
        style=style,
        orientation=rng.integers(len(ANGLES[split]), size=n),
        defect=rng.integers(len(DEFECTS[split]), size=n),
    )
    return draw_images(split, attributes, Document(), Generator().manual_seed(int(rng.integers(2**62)))), attributes
