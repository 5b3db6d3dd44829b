"""Markdown of the kind that runs write, headings, tables and paragraphs, as HTML."""

from __future__ import annotations

from itertools import groupby

from mtl.cli.report.elements import Html, escaped, heading, joined, marked, paragraph, table

MOST_LINES = 400
ANSWERS = {"right": "good", "wrong": "bad"}


def markdown(text: str) -> Html:
    """Headings become those of the third rank; whatever else there may be stays as it is written."""
    lines = text.splitlines()[:MOST_LINES]
    parts = []
    for kind, group in groupby(lines, key=_kind):
        found = list(group)
        if kind == "table":
            parts.append(_table(found))
        elif kind == "heading":
            parts += [heading(line.lstrip("#").strip()) for line in found]
        elif kind == "text":
            parts.append(paragraph(" ".join(found)))
    return joined(*parts)


def _kind(line: str) -> str:
    if line.startswith("|"):
        return "table"
    return "heading" if line.startswith("#") else "text" if line.strip() else ""


def _table(lines: list[str]) -> Html:
    head, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    if rows and all(set(cell) <= set(":-") for cell in rows[0]):
        rows = rows[1:]
    return table(head, [[_cell(cell) for cell in row] for row in rows], texts=len(head))


def _cell(text: str) -> Html:
    return marked(text, ANSWERS[text]) if text in ANSWERS else escaped(text)
