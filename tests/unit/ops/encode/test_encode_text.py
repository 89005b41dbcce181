"""Text, chunks and documents: what is prose, where chunks end, and what is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ops.encode.chunks import WORDS_MAX, WORDS_MIN, chunks, is_of_words
from ops.encode.documents import DOCUMENT_BYTES_MAX, SUFFIXES, Document, RefusedDocument, documents
from ops.encode.markup import of_html, of_markdown
from ops.encode.settings import EncodeSettings
from ops.predict.sources import expand

SENTENCE = "A sentence of this kind has exactly ten words in it."


def read(folder: Path, **chosen: str) -> list[Document | RefusedDocument]:
    settings = EncodeSettings(sources=[str(folder)], out="out", encoder=Path("e"), **chosen)
    return list(documents(expand(settings.sources, SUFFIXES), settings))


def refused(folder: Path) -> dict[str, str]:
    return {one.name: one.code for one in read(folder) if isinstance(one, RefusedDocument)}


@given(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), max_size=6))
def test_chunks_have_18_to_60_words_and_lose_none(paragraphs: list[list[int]]) -> None:
    text = "\n\n".join(" ".join(" ".join(["Word"] * n) + "." for n in lengths) for lengths in paragraphs)
    count, found = len(text.split()), chunks(text)
    assert all(WORDS_MIN <= chunk.words == len(chunk.text.split()) <= WORDS_MAX for chunk in found)
    assert " ".join(chunk.text for chunk in found) == (" ".join(text.split()) if count >= WORDS_MIN else "")
    assert [" ".join(text[chunk.start : chunk.end].split()) for chunk in found] == [c.text for c in found]


def test_a_chunk_ends_with_a_sentence_and_best_with_its_paragraph() -> None:
    found = chunks(" ".join([SENTENCE] * 12))
    assert [chunk.words for chunk in found] == [55, 55, 22]
    assert all(chunk.text.endswith(".") for chunk in found)
    found = chunks("\n\n".join([" ".join([SENTENCE] * 2)] * 4))
    assert [chunk.words for chunk in found] == [22] * 4


def test_a_period_of_an_abbreviation_ends_no_sentence() -> None:
    text = "word " * 20 + "e.g. Cats and Dr. Who said so. " + "Word " * 40
    assert chunks(text)[0].text.endswith("said so.")


def test_data_without_spaces_is_no_word_and_costs_no_time() -> None:
    [chunk] = chunks("x" * 5_000_000 + " " + SENTENCE + " " + SENTENCE)
    assert chunk.text == f"{SENTENCE} {SENTENCE}"


def test_html_is_read_without_code_tables_navigation_and_markup() -> None:
    page = (
        "<html><head><title>no</title></head><nav>no</nav><p>An <b>im</b>portant\nline.<pre>no</pre>"
        "<table><tr><td>no</table><li>Tom &amp; I<script>no()</script></body>"
    )
    assert [one for one in of_html(page).split("\n\n") if one.strip()] == ["An important line.", "Tom & I"]


def test_html_that_closes_nothing_is_read_in_time() -> None:
    text = of_html("<head><title>no</title><body><p>one" + "<pre><b>no</b>" * 100_000 + "</nav></pre>")
    assert text.split() == ["one"]
    assert of_html("<div><nav><table>no</nav>yes").split() == ["yes"]


def test_markdown_is_read_without_code_links_and_markup() -> None:
    text = "---\ntitle: no\n---\n# Head\n\nSee **the** [page](no) and `it`.\n```\nno\n```\n- one\n- two\n"
    words = of_markdown(text).split()
    assert words == ["Head", "See", "the", "page", "and", "it.", "one", "two"]


def test_ids_are_paths_and_domains_are_folders(tmp_path: Path) -> None:
    for name in ("git/a.txt", "git/deep/b.md", "perl/c.html", "git/image.png", "_no/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    found = [(one.id, one.domain) for one in read(tmp_path) if isinstance(one, Document)]
    assert found == [("git/a.txt", "git"), ("git/deep/b.md", "git"), ("perl/c.html", "perl")]


def test_a_file_whose_name_is_no_text_has_an_id_that_can_be_stored(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    [one] = read(tmp_path)
    assert isinstance(one, Document)
    assert one.id.encode().startswith(b"caf")


def test_lines_and_rows_are_documents_with_names_of_their_own(tmp_path: Path) -> None:
    lines = [{"doc_id": 7, "text": "seven", "domain": "numbers"}, {"text": "nameless"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    table = pa.table({"text": ["row", None], "doc_id": ["r", "s"]})
    parquet.write_table(table, tmp_path / "b.parquet")
    found = read(tmp_path)
    assert found[:3] == [
        Document("7", "numbers", "seven"),
        Document("a.jsonl:2", tmp_path.name, "nameless"),
        Document("r", tmp_path.name, "row"),
    ]
    assert [one.code for one in found[3:] if isinstance(one, RefusedDocument)] == ["no_text"]


def test_bad_input_is_named_and_takes_nothing_with_it(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"PK\x03\x04\0\0")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "large.txt").write_bytes(b"x " * (DOCUMENT_BYTES_MAX // 2 + 1))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "columns.parquet")
    huge = b'{"text": "' + b"x" * (DOCUMENT_BYTES_MAX + 5) + b'"}'
    lines = [huge, b"not json", b"[1]", b'{"body": 1}', b'{"text": "one", "doc_id": "a"}']
    lines += [b'{"text": "two", "doc_id": "a"}', b'{"text": "\\ud800"}']
    (tmp_path / "lines.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "section.html").write_text("<p>one<![foo[two]]>three")
    (tmp_path / "idna.html").write_bytes(b'<meta charset="idna">' + b"\xff" * 99)
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "z.txt")
    (tmp_path / "good.txt").write_text("good")
    assert refused(tmp_path) == {
        "binary.txt": "binary",
        "columns.parquet": "unreadable",
        "idna.html": "wrong_encoding",
        "lines.jsonl:7": "bad_line",
        "section.html": "unreadable",
        "damaged.parquet": "unreadable",
        "large.txt": "too_large",
        "latin.txt": "wrong_encoding",
        "lines.jsonl:1": "too_large",
        "lines.jsonl:2": "bad_line",
        "lines.jsonl:3": "bad_line",
        "lines.jsonl:4": "no_text",
        "a": "repeated_id",
    }
    assert [one.text for one in read(tmp_path) if isinstance(one, Document)] == ["good", "one"]
    assert refused(tmp_path / "fifo.txt") == {"fifo.txt": "unreadable"}


@pytest.mark.parametrize(
    ("name", "data", "charset"),
    [
        ("a.txt", "café".encode("utf-16"), "utf-8"),
        ("a.txt", "\ufeffcafé".encode(), "utf-8"),
        ("a.txt", "café".encode("cp1252"), "cp1252"),
        ("a.html", '<meta charset="iso-8859-1">café'.encode("latin-1"), "utf-8"),
        ("a.html", '<meta charset="utf-16">café'.encode(), "cp1252"),  # as HTML says: it cannot be that
        ("a.html", '<meta charset="UTF-32LE">café'.encode(), "cp1252"),
        ("a.jsonl", '\ufeff{"text": "café"}'.encode(), "utf-8"),
    ],
)
def test_encodings_are_known_by_their_mark_by_the_page_or_by_the_option(
    tmp_path: Path, name: str, data: bytes, charset: str
) -> None:
    (tmp_path / name).write_bytes(data)
    [one] = read(tmp_path, charset=charset)
    assert isinstance(one, Document), one
    assert one.text.strip() == "café"


@pytest.mark.parametrize(
    ("lengths", "words"), [([15, 50, 20], [60, 25]), ([10, 40, 15], [47, 18]), ([30, 50, 20], [30, 50, 20])]
)
def test_a_sentence_is_cut_where_none_ends_in_time_or_too_little_is_left(
    lengths: list[int], words: list[int]
) -> None:
    text = " ".join("Word " * (length - 1) + "end." for length in lengths)
    assert [chunk.words for chunk in chunks(text)] == words


def test_a_text_without_spaces_is_no_text_of_words_and_one_with_some_data_is() -> None:
    assert is_of_words(f"{SENTENCE} " * 20 + "x" * 400)
    assert is_of_words("")
    assert not is_of_words("\u8fd9\u662f\u4e00\u53e5\u8bdd\u3002" * 40 + f"\n\n{SENTENCE}")
