"""Reading a page of HTML as a strict reader would."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page, taken apart; raises AssertionError for what a page of ours must not have.

    It is well-formed, asks for nothing from elsewhere, has no script, and every picture has words.
    """

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.texts: dict[str, list[str]] = {}  # by element
        self.tables: dict[str, list[list[str]]] = {}  # by caption: rows of cells
        self.titles: list[str] = []  # of tables that are open
        assert text.startswith("<!DOCTYPE html>\n")
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)
        assert set(self.targets) <= {f"#{each}" for each in self.ids}

    @property
    def text(self) -> str:
        return " ".join(" ".join(each) for each in self.texts.values())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        given = dict(attrs)
        assert len(given) == len(attrs)
        for name, value in given.items():
            assert not name.startswith("on"), name
            assert name not in ("srcset", "action", "xlink:href"), name
            assert not (name == "style" and "url(" in str(value))
        if "src" in given:
            assert str(given["src"]).startswith("data:image/")
        if "href" in given:
            self.targets.append(str(given["href"]))
        if tag == "img":
            assert given["alt"]
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows().append([])
        if tag in ("td", "th"):
            self.rows()[-1].append("")
        if tag == "caption":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.titles.pop()

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)
        if "style" in self.open:
            assert not re.search(r"url\(|@import|http", data)
        elif "caption" in self.open:
            self.titles[-1] += data
        elif "td" in self.open or "th" in self.open:
            self.rows()[-1][-1] += data

    def rows(self) -> list[list[str]]:
        return self.tables.setdefault(self.titles[-1], [])
