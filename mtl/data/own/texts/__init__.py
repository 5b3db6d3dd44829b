"""Your own texts: tables, class folders and Hugging Face data sets, all through :func:`open_texts`.

Problems in the data are reported when it is opened, not in the middle of a night of training.
"""

from mtl.data.own.texts.collection import TextCollection
from mtl.data.own.texts.opening import SUFFIXES, open_texts, read_texts

__all__ = ["SUFFIXES", "TextCollection", "open_texts", "read_texts"]
