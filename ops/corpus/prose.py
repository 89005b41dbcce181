"""The prose of a file of documentation: English paragraphs of whole sentences, and nothing else."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from ops.encode.documents import DOCUMENT_BYTES_MAX
from ops.encode.markup import of_html, of_markdown

_WORDS_MIN, _ORDINARY_MIN, _LOWER_MIN, _WORD_LETTERS_MAX, _FUNCTION_WORDS_MIN = 7, 0.93, 0.55, 9, 0.15
_ORDINARY = re.compile(r"[A-Za-z\s.,;:!?'\"()\u2018\u2019\u201c\u201d\u2013\u2014-]")
_SENTENCE_END = re.compile(r"[.!?:][\"')\u201d\u2019]*$")
_FUNCTION_WORDS = re.compile(
    r"\b(the|of|and|to|a|in|is|that|for|it|with|as|on|be|this|by|are|or|an|not|from|can|if|you|at|which|when)\b"
)
_TEXT, _HTML = {"", ".txt", ".text", ".rst", ".pod"}, {".html", ".htm", ".xhtml", ".docbook", ".page"}
_MAN = re.compile(r"\.[1-9][a-z]*")
#: Copies of the sources of pages, indexes, and texts of law, but not `search-order` or `license-rules`.
_LEFT_OUT = re.compile(
    r"(^|/)((_sources|search|changelog|copyright|copying|licen[cs]e)(?=[./]|$)|genindex|"
    r"(?-i:COPYING|LICEN[CS]E))",
    re.IGNORECASE,
)
#: Marks of reStructuredText and Perl's pod around words, and bullets; the words stay.
_MARKS = re.compile(
    r":[a-z:]+:(?=`)|[A-Z]<+|(?<=\S)[>`*|]+(?!\w)|\b_+(?!\w)|[`*|]+(?=\w)| <[^<>\s]+>(?=`)|"
    r"^[ \t]*[-*\u2022][ \t]+",
    re.MULTILINE,
)
_MAN_VERBATIM = re.compile(r"^[.'](nf|EX|TS|Bd)\b.*?^[.'](fi|EE|TE|Ed)\b", re.MULTILINE | re.DOTALL)
_MAN_FONT = re.compile(r"^[.'](?:B|I|SM|SB) +", re.MULTILINE)
#: Fonts that take turns: between their words there is no space, but in quotes.
_MAN_FONTS = re.compile(r"^[.'](?:BR|BI|IB|IR|RB|RI) +(.*)", re.MULTILINE)
_MAN_WORD = re.compile(r'"([^"]*)" *|(\S+) *')
_MAN_MACRO = re.compile(r"^[.'].*$", re.MULTILINE)
_MAN_ESCAPES = re.compile(r"\\(f\(..|f\[.*?\]|f.|s[+-]?\d|[&|^%c/,])|\\\".*$", re.MULTILINE)
_MAN_CHARACTERS = {r"\-": "-", r"\ ": " ", r"\~": " ", r"\(aq": "'", r"\(cq": "'", r"\(em": "-", r"\(en": "-"}


def paragraphs(path: Path, name: str) -> list[str]:
    """Return the paragraphs of prose of a file; [] if it has none, or holds something else than English text.

    Args:
        name: Its path in its package.
    """
    packed = path.suffix == ".gz"
    convert = _converter(path.with_suffix("").suffix if packed else path.suffix, name)
    if convert is None or _LEFT_OUT.search(name):
        return []
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(DOCUMENT_BYTES_MAX + 1)
        text = convert(data.decode("utf-8", "replace")) if len(data) <= DOCUMENT_BYTES_MAX else ""
    except (OSError, EOFError, zlib.error, AssertionError):  # damaged; the last: Python's parser of HTML
        return []
    found = (" ".join(one.split()) for one in re.split(r"\n\s*\n", text))
    prose = [one for one in found if is_prose(one)]
    return prose if is_english(prose) else []


def is_prose(paragraph: str) -> bool:
    """Return whether a paragraph, with single spaces, is of whole sentences of ordinary words."""
    words = paragraph.split(" ")
    return (
        len(words) >= _WORDS_MIN
        and _SENTENCE_END.search(paragraph) is not None
        and sum(word[0].islower() for word in words if word) >= _LOWER_MIN * len(words)
        and len(_ORDINARY.findall(paragraph)) >= _ORDINARY_MIN * len(paragraph)
        and sum(map(str.isalpha, paragraph)) < _WORD_LETTERS_MAX * len(words)
    )


def is_english(paragraphs: list[str]) -> bool:
    """Return whether enough words of a text are those that English is held together by."""
    text = " ".join(paragraphs).lower()
    return len(_FUNCTION_WORDS.findall(text)) > _FUNCTION_WORDS_MIN * len(text.split())


def _converter(kind: str, name: str) -> Callable[[str], str] | None:
    """Return what makes paragraphs of a file, by its suffix and its path; None for a file that is no text."""
    if kind in _HTML:
        return of_html
    if kind in (".md", ".markdown"):
        return of_markdown
    if "/man/" in name:
        return of_man if _MAN.fullmatch(kind) else None
    return _of_text if kind in _TEXT and (kind or "/doc/" in name) else None


def of_man(page: str) -> str:
    """Return the text of a manual page: macros end paragraphs, and those of fonts keep their words."""
    text = _MAN_FONT.sub("", _MAN_VERBATIM.sub("", _MAN_ESCAPES.sub("", page)))
    text = _MAN_FONTS.sub(lambda line: _MAN_WORD.sub(r"\1\2", line[1]), text)
    for escape, character in _MAN_CHARACTERS.items():
        text = text.replace(escape, character)
    return _MAN_MACRO.sub("\n", text)


def _of_text(text: str) -> str:
    return _MARKS.sub("", text)
