"""Tasks to train and test on: the embedded glyphs and docstrings, and people's own images and texts."""

from mtl.data.embedded.character_tasks import CharacterTasks
from mtl.data.embedded.docstring_tasks import DocstringTasks, docstring_split
from mtl.data.embedded.glyph_tasks import GlyphTasks
from mtl.data.families import (
    DividedFamilies,
    EvaluationTasks,
    Family,
    FamilyRequest,
    FamilyTasks,
    divide_families,
    open_families,
)
from mtl.data.own.alternating import Alternating
from mtl.data.own.class_tasks import ClassTasks
from mtl.data.own.collection import AbstractCollection
from mtl.data.own.images import ImageCollection, open_images
from mtl.data.own.input_cache import InputCache
from mtl.data.own.splits import ClassSplit, load_or_make_split, split_classes
from mtl.data.own.texts import TextCollection, open_texts, read_texts

__all__ = [
    "AbstractCollection",
    "Alternating",
    "CharacterTasks",
    "ClassSplit",
    "ClassTasks",
    "DividedFamilies",
    "DocstringTasks",
    "EvaluationTasks",
    "Family",
    "FamilyRequest",
    "FamilyTasks",
    "GlyphTasks",
    "ImageCollection",
    "InputCache",
    "TextCollection",
    "divide_families",
    "docstring_split",
    "load_or_make_split",
    "open_families",
    "open_images",
    "open_texts",
    "read_texts",
    "split_classes",
]
