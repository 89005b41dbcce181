"""The prose of documentation: what a page, a manual and a text keep, and what is left out."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest

from ops.corpus.prose import is_prose, paragraphs
from ops.encode.documents import DOCUMENT_BYTES_MAX

LINE = "The server keeps a list of all the requests that it has in the order of their time."


def read(folder: Path, name: str, text: str) -> list[str]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return paragraphs(path, name)


@pytest.mark.parametrize(
    "paragraph",
    [
        "The list is short.",  # few words
        "The list of all requests of the server that are",  # no end
        "The list: a[0] = b[1] + 2*c[3]; d |= 0x7f, and then e{4} is f.",  # data
        "List Of The Tables And Of The Figures Of This Book And More.",  # a title
        "the interoperability characteristics necessitate internationalization considerations everywhere.",
    ],
)
def test_what_is_no_paragraph_of_whole_sentences_is_left_out(tmp_path: Path, paragraph: str) -> None:
    assert is_prose(LINE)
    assert not is_prose(paragraph)


def test_a_text_of_another_language_is_left_out(tmp_path: Path) -> None:
    german = "Der Server hat eine lange Liste von allem, was noch zu tun ist und was er schon getan hat."
    assert is_prose(german)
    assert read(tmp_path, "usr/share/doc/a.txt", german) == []
    assert read(tmp_path, "usr/share/doc/b.txt", LINE) == [LINE]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.rst",
            "The :ref:`server <there>` keeps a ``list`` of *all* the `requests`_ that it has\n"
            "in the order of their time.",
        ),
        (
            "a.pod",
            "The C<server> keeps a B<list> of all the L<requests> that it has in the I<order> of their time.",
        ),
        ("a.docbook", f"<article><para>{LINE}</para><screen>x</screen></article>"),
        ("README", f"Aims\n\n  * {LINE}\n\n{'=' * 40}"),
        (
            "man/man1/a.1",
            '.TH A 1\n.PP\nThe\n.BR server " keeps a"\nlist of \\fIall\\fP the\n.I requests\nthat it has '
            "in the order of their time.\n.nf\nThe code of this page is left out, and it is a line.\n.fi\n",
        ),
    ],
)
def test_marks_of_each_kind_of_text_go_and_the_words_stay(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path, f"usr/share/doc/{name}", text) == [LINE]


@pytest.mark.parametrize(
    "name",
    [
        "doc/copyright",
        "doc/_sources/a.rst",
        "doc/genindex-A.html",
        "doc/LICENSE-MIT.txt",
        "lib/a",
        "doc/a.png",
        "man/man1/a.html.5x5",
    ],
)
def test_files_that_are_no_documentation_are_not_read(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, f"usr/share/{name}", LINE) == []


@pytest.mark.parametrize(
    "name", ["search-order.txt", "Searching.html", "license-rules.rst", "copyrighted/a.txt"]
)
def test_a_name_that_only_begins_like_one_of_an_index_or_of_a_law_is_read(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, f"usr/share/doc/{name}", LINE) == [LINE]


def test_a_packed_file_is_not_unpacked_beyond_the_length_of_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(f"{LINE}\n\n".encode() * 10) + gzip.compress(b"\n" * DOCUMENT_BYTES_MAX))
    tracemalloc.start()
    found, (_, peak) = paragraphs(path, "usr/share/doc/a.txt.gz"), tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == []
    assert peak < 4 * DOCUMENT_BYTES_MAX
