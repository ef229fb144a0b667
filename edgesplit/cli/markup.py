"""HTML that is well-formed because it is built, not written: elements, escaped text, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

EMPTY = {"meta", "br"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def el(name: str, /, *children: str, **attributes: str) -> Markup:
    """An element; children that are not Markup are escaped. `class_` is class, `data_x` is data-x."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items() if value
    )
    if name in EMPTY:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{''.join(map(text, children))}</{name}>")


def text(words: str) -> str:
    return words if isinstance(words, Markup) else escape(words, quote=False)


def join(parts: Iterable[str]) -> Markup:
    return Markup("".join(map(text, parts)))


def section(title: str, *children: str) -> Markup:
    return el("section", el("h2", title), *children)


def listed(sentences: Iterable[str]) -> Markup:
    return el("ul", *(el("li", sentence) for sentence in sentences))


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A column of numbers is called ">name", as in render.show; the first column names its row."""
    kinds = ["number" if column.startswith(">") else "" for column in columns]
    heads = [
        el("th", column.removeprefix(">"), scope="col", class_=kind)
        for column, kind in zip(columns, kinds, strict=True)
    ]
    body = []
    for row in rows:
        first, *rest = zip(row, kinds, strict=True)
        cells = [el("th", first[0], scope="row", class_=first[1])]
        cells += [el("td", cell, class_=kind) for cell, kind in rest]
        body.append(el("tr", *cells))
    made = el("table", el("caption", caption), el("thead", el("tr", *heads)), el("tbody", *body))
    return el("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)
