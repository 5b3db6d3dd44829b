"""Tables of cells, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(cells: Sequence[Sequence[str]], markdown: bool) -> str:
    """Columns padded to their widest cell: the first aligned left, numbers right."""
    if markdown:
        cells = [[c.replace("|", r"\|") for c in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *body = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in [head, ["-" * w for w in widths], *body])
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])
