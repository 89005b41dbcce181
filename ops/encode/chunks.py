"""Text to chunks of 18 to 60 words, which end where a sentence ends wherever that is possible."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

WORDS_MIN, WORDS_MAX = 18, 60
#: A string of more characters without a space is no word but data, and left out.
_WORD_LENGTH_MAX = 100
_WORD = re.compile(r"\S+")
#: The end of a sentence, perhaps with quotes and brackets that close behind it.
_SENTENCE = re.compile(r"[.!?:;…][\"')\]\u201d\u2019\u00bb]*$")
#: A period that ends no sentence.
_ABBREVIATION = re.compile(r"^\W*(?:(?:[A-Za-z]\.)+|(?:Mr|Mrs|Ms|Dr|Prof|St|vs|cf|No|Fig|Vol|pp?)\.)$")
_CLAUSE = re.compile(r"[,)\]\u2013\u2014]$")
_PARAGRAPH_RANK, _SENTENCE_RANK, _CLAUSE_RANK = 3, 2, 1


def is_of_words(text: str) -> bool:
    """Return whether spaces part a text into words; False where most of it is longer strings than that."""
    lengths = [found.end() - found.start() for found in _WORD.finditer(text)]
    return 2 * sum(one for one in lengths if one > _WORD_LENGTH_MAX) <= sum(lengths)


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A chunk: its words with single spaces between them, their number, and its place in characters."""

    text: str
    words: int
    start: int
    end: int


def chunks(text: str) -> list[TextChunk]:
    """Return the chunks of a text in reading order; [] if it has fewer than 18 words.

    A chunk ends with its paragraph; with a sentence where that is too long, with a clause or after 60 words
    where a sentence is; and always so that 18 words are left behind it, or none.
    """
    spans = [found.span() for found in _WORD.finditer(text)]
    spans = [(start, end) for start, end in spans if end - start <= _WORD_LENGTH_MAX]
    ranks = [_rank(text, *span, after) for span, (after, _) in itertools.pairwise([*spans, (len(text), 0)])]
    return [
        TextChunk(
            " ".join(text[start:end] for start, end in spans[first:last]),
            last - first,
            spans[first][0],
            spans[last - 1][1],
        )
        for first, last in itertools.pairwise(_edges(ranks))
    ]


def _rank(text: str, start: int, end: int, after: int) -> int:
    """Return how well a chunk may end with the word from `start` to `end`, if the next begins at `after`."""
    if text.count("\n", end, after) > 1:
        return _PARAGRAPH_RANK
    word = text[start:end]
    if _SENTENCE.search(word) and not _ABBREVIATION.search(word) and not text[after : after + 1].islower():
        return _SENTENCE_RANK
    return _CLAUSE_RANK if _CLAUSE.search(word) else 0


def _edges(ranks: list[int]) -> list[int]:
    """Return where chunks begin and end, counted in words."""
    edges, count = [0], len(ranks)
    while (left := count - edges[-1]) >= WORDS_MIN:
        ends = range(edges[-1] + WORDS_MIN, min(edges[-1] + WORDS_MAX, count - WORDS_MIN) + 1)
        paragraph = next((end for end in ends if ranks[end - 1] == _PARAGRAPH_RANK), None)
        if paragraph is None and left > WORDS_MAX:
            paragraph = max(ends, key=lambda end: (ranks[end - 1], end))
        edges.append(paragraph or count)
    return edges
