"""Letters of many scripts as small bitmaps: which characters, which font files, which split, rendered once and cached.

matplotlib ships real text fonts (DejaVu, STIX) with letters of some fifteen scripts, so a few-shot benchmark needs no
download. Splits are disjoint in *shape*, not only in code point: a letter that looks like one of an earlier split, or
like another letter of its own split, in any orientation, is left out (:func:`distinct`).
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtl.data.embedded.shapes import distinct, similarities
from mtl.tools.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

Split = Literal["pretrain", "train", "val", "test"]
SPLITS: tuple[Split, ...] = ("pretrain", "train", "val", "test")
SHAPE_PRIORITY: tuple[Split, ...] = ("pretrain", "test", "val", "train")
"""Of two look-alikes in different splits the earlier one in this order stays: Latin first (the backbone has seen it),
then test, so that meta-training is what shrinks."""

MASTER = 64  # side of a master bitmap
BOX = 52  # longest side of the letter in it
ASYMMETRIC = 0.80  # a letter at least this similar to itself when turned has no readable orientation
EM = 96  # pixels per em at which fonts are drawn before scaling
SMALLEST = 0.3  # longest side of a letter, in em
MIN_FACES = 4  # of the text faces below; rarer letters come in one style only
VERSION = 2  # raise when anything that changes the bitmaps changes

_SANS = ("DejaVuSans", "DejaVuSans-Bold")
_MONO = ("DejaVuSansMono", "DejaVuSansMono-Bold")
_SERIF = ("DejaVuSerif", "DejaVuSerif-Bold")
_STIX = ("STIXGeneral", "STIXGeneralBol")
_SLANTED = (
    *("DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
TEXT_FACES = (*_SANS, *_MONO, *_SERIF, *_STIX, *_SLANTED)


@dataclass(frozen=True)
class ScriptSpec:
    """Where a script's letters come from.

    Args:
        split: the split that owns the script.
        prefixes: first words of its letters' Unicode names.
        files: upright font files used. Oblique files are left out: they are sheared uprights, and slant is synthetic.
        ranges: code points considered, ``(first, last)``; empty for all.
    """

    split: Split
    prefixes: tuple[str, ...]
    files: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...] = ()


# Lisu and Coptic are missing on purpose: next to Latin, Lisu keeps no letter (they are turned Latin capitals), Coptic
# five. Runic, Tifinagh, Ogham and N'Ko are in fewer than four faces. Khutsuri is Georgia's old church script.
SCRIPTS: dict[str, ScriptSpec] = {
    "latin": ScriptSpec("pretrain", ("LATIN", "DIGIT"), (*_SANS, *_MONO, *_SERIF, *_STIX), ((0x30, 0x7A),)),
    "georgian": ScriptSpec("test", ("GEORGIAN",), (*_SANS, *_MONO, *_SERIF), ((0x10D0, 0x10FF),)),
    "armenian": ScriptSpec("test", ("ARMENIAN",), (*_SANS, *_MONO, *_SERIF)),
    "hebrew": ScriptSpec("test", ("HEBREW",), _SANS),
    "arabic": ScriptSpec("test", ("ARABIC",), (*_SANS, *_MONO)),
    "canadian": ScriptSpec("test", ("CANADIAN",), _SANS),
    "lao": ScriptSpec("test", ("LAO",), _SANS),
    "khutsuri": ScriptSpec("val", ("GEORGIAN",), (*_SANS, *_SERIF), ((0x10A0, 0x10CF), (0x2D00, 0x2D2F))),
    "old_italic": ScriptSpec("val", ("OLD",), _SANS),
    "greek": ScriptSpec("train", ("GREEK",), (*_SANS, *_MONO, *_SERIF)),
    "cyrillic": ScriptSpec("train", ("CYRILLIC",), (*_SANS, *_SERIF)),
    "extended_latin": ScriptSpec("train", ("LATIN",), (*_SANS, *_MONO, *_SERIF), ((0x80, 0x1FFFF),)),
}


@dataclass(frozen=True)
class Script:
    """The letters of one script that passed every filter.

    Args:
        name: key of :data:`SCRIPTS`.
        characters: one string per class.
        files: font files, without folder and suffix.
        masters: ``(characters, files, 64, 64)`` uint8, ink 255 on 0, centred, longest side 52.
        orientable: ``(characters,)`` bool, false for letters that look alike when turned (o, x, s).
    """

    name: str
    characters: tuple[str, ...]
    files: tuple[str, ...]
    masters: Tensor
    orientable: Tensor


# ---------------------------------------------------------------------------------------------- choosing characters


def candidates(name: str) -> list[str]:
    """Letters of a script before any comparison of shapes.

    Kept: letters and digits in every file of the script and in at least four text faces. Left out: letters that differ
    from another by a diacritic or that are typographic variants of one (a Unicode decomposition, or ``WITH`` in the
    name): as classes they would differ by a dot of two pixels.
    """
    spec = SCRIPTS[name]
    covered = frozenset.intersection(*(_charmap(f) for f in spec.files))
    spans = spec.ranges or ((0, 0x10FFFF),)
    letters = [chr(c) for c in sorted(covered) if any(a <= c <= b for a, b in spans)]
    return [c for c in letters if _is_base(c, spec.prefixes) and _is_large(c, spec.files[0])]


def _is_base(character: str, prefixes: tuple[str, ...]) -> bool:
    name = unicodedata.name(character, "")
    return (
        name.split(" ")[0] in prefixes
        and unicodedata.category(character) in ("Lu", "Ll", "Lo", "Nd")
        and " WITH " not in name
        and unicodedata.normalize("NFKD", character) == character
        and sum(ord(character) in _charmap(f) for f in TEXT_FACES) >= MIN_FACES
    )


def _is_large(character: str, file: str) -> bool:
    """Not a mark such as a middle dot, which scaled to the common box would be a solid square."""
    ink = _ink(character, file)
    return ink is not None and max(ink.size) >= SMALLEST * EM


# ------------------------------------------------------------------------------------------------ rendering and cache


@cache
def _font(file: str) -> FT2Font:
    import matplotlib  # where letters are drawn, not where their module is imported
    from matplotlib.ft2font import FT2Font

    return FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{file}.ttf"))


@cache
def _charmap(file: str) -> frozenset[int]:
    return frozenset(_font(file).get_charmap())


def _ink(character: str, file: str) -> Image.Image | None:
    """The letter cropped to its ink, at ``EM`` pixels per em; none when nothing is drawn."""
    font = _font(file)
    font.set_size(EM, 72)
    font.set_text(character)
    font.draw_glyphs_to_bitmap(antialiased=True)
    page = Image.fromarray(np.asarray(font.get_image()))
    box = page.getbbox()
    return page.crop(box) if box else None


def render(character: str, file: str) -> np.ndarray:
    """One letter, ``(64, 64)`` uint8, ink 255: cropped, longest side scaled to 52, centred.

    Raises:
        ValueError: when the font draws nothing for the character.
    """
    ink = _ink(character, file)
    if ink is None:
        raise ValueError(f"{file} draws nothing for {character!r}; choose a letter from candidates()")
    ratio = BOX / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * ratio)), max(1, round(ink.height * ratio))), Image.Resampling.BOX)
    page = Image.new("L", (MASTER, MASTER))
    page.paste(ink, ((MASTER - ink.width) // 2, (MASTER - ink.height) // 2))
    return np.asarray(page)


def build() -> dict[str, np.ndarray]:
    """Choose and render every letter; the arrays of the cache file, ``"<script>/<field>"`` each."""
    order = [name for split in SHAPE_PRIORITY for name, spec in SCRIPTS.items() if spec.split == split]
    letters = [(name, c) for name in order for c in candidates(name)]
    shapes = torch.stack([torch.from_numpy(render(c, SCRIPTS[name].files[0]).copy()) for name, c in letters])
    similarity, itself = similarities(shapes)
    kept = distinct(similarity)
    arrays: dict[str, np.ndarray] = {}
    for name in order:
        mine = [i for i in kept if letters[i][0] == name]
        arrays[f"{name}/characters"] = np.array([letters[i][1] for i in mine], dtype="U1")
        arrays[f"{name}/orientable"] = (itself[mine] < ASYMMETRIC).numpy()
        bitmaps = [[render(letters[i][1], f) for f in SCRIPTS[name].files] for i in mine]
        arrays[f"{name}/masters"] = np.array(bitmaps, np.uint8).reshape(len(mine), -1, MASTER, MASTER)
    return arrays


def cache_file() -> Path:
    """Where the rendered letters are kept: ``$MTL_CACHE`` or ``~/.cache/mtl``, one file per version of the fonts."""
    folder = Path(os.environ.get("MTL_CACHE") or Path.home() / ".cache" / "mtl")
    return folder / f"glyphs-v{VERSION}-mpl{version('matplotlib')}.npz"


def ensure_cache() -> Path:
    """The cache file, rendered first when it is missing. A process that dies half-way leaves no partial file behind."""
    path = cache_file()
    if path.exists():
        return path
    arrays = build()
    with atomic_write(path) as draft:  # readers see no file or the whole file, also when two processes render
        np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
    return path


@cache
def _load(path: Path, split: Split) -> tuple[Script, ...]:
    with np.load(path) as arrays:
        return tuple(
            Script(
                name,
                tuple(arrays[f"{name}/characters"].tolist()),
                spec.files,
                torch.from_numpy(arrays[f"{name}/masters"]),
                torch.from_numpy(arrays[f"{name}/orientable"]),
            )
            for name, spec in SCRIPTS.items()
            if spec.split == split
        )


def load_scripts(split: Split) -> tuple[Script, ...]:
    """The scripts of a split, rendered on first use.

    Raises:
        ValueError: for a split that does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    return _load(ensure_cache(), split)
