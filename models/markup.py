"""Pieces of HTML that pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from html import escape

from models.pictures import Plot


class Picture(str):
    """Markup that stands in a cell as it is."""

    __slots__ = ()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; heads that begin with ``!`` stand over words, and all cells but pictures are text."""

    def cells(tag: str, values: Sequence[str]) -> Iterator[str]:
        for head, value in zip(heads, values, strict=True):
            if isinstance(value, Picture):
                yield f'<{tag} class="picture">{value}</{tag}>'
            else:
                kind = ' class="text"' if head.startswith("!") else ""
                yield f"<{tag}{kind}>{escape(value)}</{tag}>"

    names = [each if isinstance(each, Picture) else each.removeprefix("!") for each in heads]
    head = "".join(cells("th", names))
    body = "".join(f"<tr>{''.join(cells('td', row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(plot: Plot, caption: str) -> str:
    """A plot and what is to be said of it, in HTML."""
    return f"<figure>{plot.svg()}<figcaption>{caption}</figcaption></figure>"


def time(at: datetime | None) -> str:
    """An event time in UTC."""
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
