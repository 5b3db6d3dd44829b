"""Tasks that come with the package and need no download: glyphs, characters and docstrings."""
