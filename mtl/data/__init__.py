"""Tasks to train and test on: the embedded glyphs and docstrings, and people's own images and texts."""

from mtl.data.character_tasks import CharacterTasks
from mtl.data.docstring_tasks import DocstringTasks, docstring_split
from mtl.data.glyph_tasks import GlyphTasks, contact_sheet
from mtl.data.image_tasks import ImageTasks
from mtl.data.images import ImageCollection, open_images
from mtl.data.splits import ClassSplit, saved_split, split_classes
from mtl.data.text_tasks import TextTasks
from mtl.data.texts import TextCollection, open_texts
from mtl.data.token_cache import TokenCache

__all__ = [
    "CharacterTasks",
    "ClassSplit",
    "DocstringTasks",
    "GlyphTasks",
    "ImageCollection",
    "ImageTasks",
    "TextCollection",
    "TextTasks",
    "TokenCache",
    "contact_sheet",
    "docstring_split",
    "open_images",
    "open_texts",
    "saved_split",
    "split_classes",
]
