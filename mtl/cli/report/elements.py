"""Parts of a page of HTML. Every text is escaped, unless it is :class:`Html` already."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #5b6472; --line: #d8dce2; --page: #ffffff; --box: #f5f6f8;
  --good: #00755c; --bad: #c2410c; --link: #1d4ed8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --soft: #a3abb8; --line: #3a4150; --page: #14171d;
  --box: #1e232c; --good: #4ec9a8; --bad: #ff9466; --link: #8fb4ff; } }
body { margin: 0 auto; max-width: 1080px; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1.05rem; overflow-wrap: anywhere; }
a { color: var(--link); } nav a { margin-right: 1rem; white-space: nowrap; }
p.note, caption, summary { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .4rem 0; font-size: .92rem; }
caption { padding: .2rem 0; text-align: left; } tr.ours td, tr.ours th { font-weight: 600; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
pre { padding: .7rem 1rem; border-radius: 6px; background: var(--box); overflow-x: auto; }
"""


class Html(str):
    """Finished HTML."""


def escaped(text: Any) -> Html:
    """A text as HTML shows it; finished HTML as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def marked(text: Any, name: str) -> Html:
    """A text of a class of :data:`STYLE`, such as ``"good"``."""
    return Html(f'<span class="{escaped(name)}">{escaped(text)}</span>')


def paragraph(text: Any, name: str = "") -> Html:
    look = f' class="{escaped(name)}"' if name else ""
    return Html(f"<p{look}>{escaped(text)}</p>\n")


def listed(items: Sequence[Any]) -> Html:
    return Html(f"<ul>{''.join(f'<li>{escaped(item)}</li>' for item in items)}</ul>\n") if items else Html()


def heading(text: Any) -> Html:
    return Html(f"<h3>{escaped(text)}</h3>\n")


def code(lines: Sequence[str]) -> Html:
    shown = "\n".join(lines)
    return Html(f"<pre><code>{escaped(shown)}</code></pre>\n")


def table(
    head: Sequence[Any], rows: Sequence[Sequence[Any]], texts: int = 1, caption: Any = "", ours: Sequence[int] = ()
) -> Html:
    """A table.

    Args:
        texts: so many columns at the left hold texts, the others numbers.
        ours: positions of rows that stand out.
    """

    def line(cells: Sequence[Any], tag: str) -> str:
        number = lambda i: ' class="number"' if i >= texts else ""  # noqa: E731
        return "".join(f"<{tag}{number(i)}>{escaped(cell)}</{tag}>" for i, cell in enumerate(cells))

    look = lambda i: ' class="ours"' if i in ours else ""  # noqa: E731
    body = "\n".join(f"<tr{look(i)}>{line(cells, 'td')}</tr>" for i, cells in enumerate(rows))
    top = f"<thead><tr>{line(head, 'th')}</tr></thead>" if head else ""
    note = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return Html(f'<div class="scroll"><table>{note}{top}<tbody>\n{body}\n</tbody></table></div>\n')


def facts(rows: Mapping[str, Any], caption: Any = "") -> Html:
    """Names and values, one a line."""
    return table((), list(rows.items()), texts=2, caption=caption) if rows else Html()


def folded(summary: Any, body: Html) -> Html:
    """A part that is shown when asked for."""
    return Html(f"<details><summary>{escaped(summary)}</summary>\n{body}</details>\n")


def image(address: str, words: str) -> Html:
    return Html(f'<p><img src="{escaped(address)}" alt="{escaped(words)}"></p>\n')


def joined(*parts: str) -> Html:
    return Html("".join(escaped(part) for part in parts))


def document(title: str, head: Html, sections: Mapping[str, Html]) -> str:
    """The page: sections that are empty are left out, the others linked at the top."""
    full = {name: body for name, body in sections.items() if body}
    name_of = {name: name.lower().replace(" ", "-") for name in full}
    links = "".join(f'<a href="#{escaped(name_of[name])}">{escaped(name)}</a>' for name in full)
    body = "".join(
        f'<section id="{escaped(name_of[name])}">\n<h2>{escaped(name)}</h2>\n{part}</section>\n'
        for name, part in full.items()
    )
    meta = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{meta}<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n<header>\n<h1>{escaped(title)}</h1>\n{head}<nav>{links}</nav>\n</header>\n<main>\n{body}"
        "</main>\n</body>\n</html>\n"
    )
