"""People's own texts: folders, csv, jsonl, parquet and Hugging Face data sets."""

from mtl.data.texts.collection import TextCollection

__all__ = ["TextCollection"]
