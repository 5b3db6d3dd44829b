"""Images and texts as people have them: decoded by one function, and made a sequence of by one function."""

from mtl.items.decoding import RANGE_IN_PIXELS, Mode, as_image, reason
from mtl.items.sequences import IMAGE_SUFFIXES, ItemError, Reads, as_images, as_items, as_texts, image_files

__all__ = [
    "IMAGE_SUFFIXES",
    "RANGE_IN_PIXELS",
    "ItemError",
    "Mode",
    "Reads",
    "as_image",
    "as_images",
    "as_items",
    "as_texts",
    "image_files",
    "reason",
]
