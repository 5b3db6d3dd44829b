"""Your own images: folders, csv tables, parquet and Hugging Face data sets, all through :func:`open_images`.

Problems in the data are reported when it is opened, not in the middle of a night of training.
"""

from mtl.data.own.images.collection import ImageCollection, Reader
from mtl.data.own.images.files import SUFFIXES
from mtl.data.own.images.opening import open_images
from mtl.items import Mode

__all__ = ["SUFFIXES", "ImageCollection", "Mode", "Reader", "open_images"]
