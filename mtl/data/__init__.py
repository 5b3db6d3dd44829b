"""Tasks to train and test on: the embedded glyphs, and people's own images."""

from mtl.data.glyph_tasks import GlyphTasks, contact_sheet
from mtl.data.image_tasks import ImageTasks
from mtl.data.images import ImageCollection, open_images
from mtl.data.splits import ClassSplit, saved_split, split_classes

__all__ = [
    "ClassSplit",
    "GlyphTasks",
    "ImageCollection",
    "ImageTasks",
    "contact_sheet",
    "open_images",
    "saved_split",
    "split_classes",
]
