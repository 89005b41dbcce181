"""The prose of HTML and Markdown: without code, tables, navigation and markup."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

from markdown_it import MarkdownIt

_LEFT_OUT = re.compile("title|script|style|template|pre|nav|table|svg|math|select|textarea|button")
#: Tags that do not end a paragraph.
_INLINE = re.compile(
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|label|mark|q|s|samp|small|span|"
    "strike|strong|sub|sup|time|tt|u|var|wbr"
)
_METADATA = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)


class _Prose(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._inside: list[str] = []
        self._open: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if _LEFT_OUT.fullmatch(tag):
            self._inside.append(tag)
            self._open[tag] += 1
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open[tag]:  # one that was never closed ends with the one around it
            self._open[last := self._inside.pop()] -= 1
            if last == tag:
                break
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.parts.append(data.replace("\n", " "))

    def _break(self, tag: str) -> None:
        if not _INLINE.fullmatch(tag):
            self.parts.append("\n\n")


def of_html(text: str) -> str:
    """Return the prose of a page, with a blank line between paragraphs."""
    parser = _Prose()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


def of_markdown(text: str) -> str:
    """Return the prose of Markdown, with a blank line between paragraphs."""
    return of_html(_MARKDOWN.render(_METADATA.sub("", text)))


def charset_of(page: bytes) -> str:
    """Return the encoding that a page says it has, at most 4 KiB from its begin; "" if it says nothing.

    A page that says so in ASCII is in no wide encoding: then it is UTF-8, as the standard of HTML has it.
    """
    found = _CHARSET.search(page[:4096])
    name = found[1].decode("ascii") if found else ""
    return "utf-8" if name.lower().startswith(("utf-16", "utf-32", "utf16", "utf32")) else name
