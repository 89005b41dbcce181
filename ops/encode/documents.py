"""The documents of files: one of a text, Markdown or HTML file, one a line of JSONL, one a row of Parquet.

What cannot be read is a `RefusedDocument`, with its name and a reason; the documents around it are not lost.
"""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from amn.errors import FileRefused
from amn.output import without_surrogates
from ops.encode.markup import charset_of, of_html, of_markdown
from ops.encode.settings import EncodeSettings
from ops.predict.sources import open_file, suffix_of

#: More is no document: all of one lies in memory.
DOCUMENT_BYTES_MAX = 16 << 20
EMPTY, SHORT, WORDLESS = "empty_document", "short_document", "no_words"
_PROSE: dict[str, Callable[[str], str]] = {
    **dict.fromkeys((".txt", ".text"), str),
    **dict.fromkeys((".md", ".markdown"), of_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), of_html),
}
_LINES, _TABLES = (".jsonl", ".ndjson"), (".parquet", ".pq")
SUFFIXES = {*_PROSE, *_LINES, *_TABLES}


@dataclass(frozen=True, slots=True)
class Document:
    """A document: its id, which no other one has, the kind of its text, and the text."""

    id: str
    domain: str
    text: str


@dataclass(frozen=True, slots=True)
class RefusedDocument:
    """Something that was to be a document and is none, by its name; code and message say why."""

    name: str
    code: str
    message: str


def documents(paths: Sequence[Path], settings: EncodeSettings) -> Iterator[Document | RefusedDocument]:
    """Yield the documents of files, and whatever is none.

    The id of a file is its path in the folder that holds all files, with `:` and a number for a line or row
    that names none; its domain is the first folder of that path, or else the folder that holds all.
    """
    seen: set[str] = set()
    common = Path(os.path.commonpath([path.parent for path in paths]))
    for path in paths:
        name = without_surrogates(path.relative_to(common).as_posix())
        folder, inside, _ = name.partition("/")
        file = Document(name, folder if inside else without_surrogates(common.name), "")
        for one in _of_file(path, file, settings):
            if isinstance(one, Document) and one.id in seen:
                yield RefusedDocument(one.id, "repeated_id", f"{name} has another document of this id")
                continue
            if isinstance(one, Document):
                seen.add(one.id)
            yield one


def _of_file(path: Path, file: Document, settings: EncodeSettings) -> Iterator[Document | RefusedDocument]:
    """Yield the documents of a file; `file` has its name and its domain."""
    try:
        if not path.is_file():
            raise FileRefused("it is no regular file")
        if suffix_of(path) in _TABLES:
            yield from _of_table(path, file, settings)
        elif suffix_of(path) in _LINES:
            yield from _of_lines(path, file, settings)
        else:
            yield _of_text(path, file, settings.charset)
    except (FileRefused, OSError, UnicodeError, AssertionError) as error:  # the last: Python's parser of HTML
        yield RefusedDocument(file.id, "unreadable", getattr(error, "strerror", None) or str(error))


def _of_text(path: Path, file: Document, charset: str) -> Document | RefusedDocument:
    with path.open("rb") as opened:
        data = opened.read(DOCUMENT_BYTES_MAX + 1)
    if len(data) > DOCUMENT_BYTES_MAX:
        return _too_large(file.id)
    prose, why = _PROSE[suffix_of(path)], ""
    said = charset_of(data) if prose is of_html else ""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        said = "utf-16"
    elif b"\0" in data:
        return RefusedDocument(file.id, "binary", f"byte {data.index(0):,} is zero, as in no text")
    for encoding in filter(None, (said, charset)):
        try:
            text = without_surrogates(data.decode(encoding)).removeprefix("\ufeff")
            return Document(file.id, file.domain, prose(text))
        except (UnicodeError, LookupError) as error:
            why = str(error)
    why += "; convert it to UTF-8, or name another --charset"
    return RefusedDocument(file.id, "wrong_encoding", why)


def _of_lines(path: Path, file: Document, settings: EncodeSettings) -> Iterator[Document | RefusedDocument]:
    number = 0
    with path.open("rb") as opened:
        while line := opened.readline(DOCUMENT_BYTES_MAX):
            number += 1
            name = f"{file.id}:{number}"
            if len(line) == DOCUMENT_BYTES_MAX and not line.endswith(b"\n"):
                yield _too_large(name)
                while line and not line.endswith(b"\n"):
                    line = opened.readline(DOCUMENT_BYTES_MAX)
            elif line.strip():
                try:
                    line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                    yield _of_values(orjson.loads(line), name, file.domain, settings)
                except orjson.JSONDecodeError as error:
                    yield RefusedDocument(name, "bad_line", f"the line is no JSON: {error}")


def _of_table(path: Path, file: Document, settings: EncodeSettings) -> Iterator[Document | RefusedDocument]:
    table, numbers = open_file(path), itertools.count()
    names = [settings.text, settings.document, settings.domain]
    if settings.text not in table.schema.names:
        raise FileRefused(
            f"it has no column {settings.text!r} but {', '.join(table.schema.names)}: name yours with --text"
        )
    for group in range(len(table.groups)):
        for batch in table.batches(group, [name for name in names if name in table.schema.names], 256):
            for values in batch.to_pylist():
                yield _of_values(values, f"{file.id}:{next(numbers)}", file.domain, settings)


def _of_values(values: Any, name: str, domain: str, settings: EncodeSettings) -> Document | RefusedDocument:
    """Return the document of a line or a row."""
    if not isinstance(values, dict):
        return RefusedDocument(name, "bad_line", f"the line is no JSON object but {type(values).__name__}")
    text, named, kind = (values.get(name) for name in (settings.text, settings.document, settings.domain))
    if not isinstance(text, str):
        why = f"{settings.text!r} is missing or no text: name yours with --text"
        return RefusedDocument(name, "no_text", why)
    if len(text) > DOCUMENT_BYTES_MAX:
        return _too_large(name)
    return Document(name if named is None else str(named), domain if kind is None else str(kind), text)


def _too_large(name: str) -> RefusedDocument:
    return RefusedDocument(name, "too_large", f"it has more than {DOCUMENT_BYTES_MAX:,} bytes; split it")
