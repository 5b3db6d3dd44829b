"""Sphinx configuration. The build needs no network: no intersphinx, and furo uses the fonts of the reader's system."""

from importlib.metadata import version as installed

project = "mtl"
author = "The mtl authors"
release = version = installed("mtl")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"mtl {release}"
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# fields are described under "Args" of their class; without this each would be listed a second time, bare
autodoc_default_options = {"members": True, "undoc-members": False}

# tables are written by hand in api.md, so that nothing is generated into the source folder
autosummary_generate = False

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute that is described and annotated is listed once
# sections of this project's docstrings beside the usual ones: what a thing costs, and what a test holds it equal to
napoleon_custom_sections = [("Cost", "notes_style"), ("Equals", "notes_style")]
