"""Shared by images and texts: recognising a source, and reading tables, columns and class folders."""
