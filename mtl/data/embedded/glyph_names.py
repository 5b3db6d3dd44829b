"""Words for the classes of the embedded glyph tasks."""

from __future__ import annotations

import unicodedata

import numpy as np

from mtl.data.embedded.glyph_drawing import Attributes
from mtl.data.embedded.glyphs import Split, load_scripts
from mtl.data.embedded.scans import ANGLES, DEFECTS, SLANTS, STYLES, WEIGHTS, WIDTHS


def class_names(split: Split, family: str, attributes: Attributes, each: int) -> list[str]:
    """One name per class of an episode, of whose images ``each`` follow one another.

    >>> from mtl.data import GlyphTasks
    >>> plan = GlyphTasks("test", families=("orientation",), ways=3).plan(0)
    >>> class_names("test", "orientation", plan.support, plan.shots)
    ['348.75°', '168.75°', '33.75°']
    """
    first = Attributes(*(column[::each] for column in attributes.columns()))
    match family:
        case "character":
            return _letters(split, first.character)
        case "typeface":
            return [f"font {f + 1} {_style(split, s)}" for f, s in zip(first.file, first.style, strict=True)]
        case "orientation":
            return [f"{ANGLES[split][i]:g}°" for i in first.orientation]
    return [_defect(split, i) for i in first.defect]


def _letters(split: Split, characters: np.ndarray) -> list[str]:
    """Such as "Armenian small ayb"."""
    letters = [letter for script in load_scripts(split) for letter in script.characters]
    return [unicodedata.name(letters[i]).replace("LETTER ", "").capitalize() for i in characters]


def _style(split: Split, index: int) -> str:
    """Weight, slant and stretch, such as "thin -0.4 ×0.55"."""
    style = STYLES[split][index]
    return f"{WEIGHTS[style.weight]} {SLANTS[style.slant]:+g} \N{MULTIPLICATION SIGN}{WIDTHS[style.width]:g}"


def _defect(split: Split, index: int) -> str:
    defect = DEFECTS[split][index]
    return f"{defect.kind} {defect.a:.3g}, {defect.b:.3g}"
