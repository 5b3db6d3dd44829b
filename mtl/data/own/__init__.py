"""Tasks from people's own images and texts: folders, tables, Hugging Face data sets."""
