"""The settings of a run that encodes documents: plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """The settings of one run.

    Attributes:
        sources: Files, folders and globs.
        out: The folder of parts.
        encoder: A folder of sentence-transformers.
        encoder_id: A name for the encoder instead of the hash of its files.
        text, document, domain: Names of fields in JSONL and of columns in Parquet; only `text` must be there.
        charset: Of text files that say nothing else.
        dtype: Of stored numbers: "float32", or "float16", which rounds them to 11 significant bits.
        precision: Of the computation: "float32", or "bfloat16", which is faster where a processor knows it.
        keep: "text" and "offsets": columns beside the vectors.
        restart: Begin anew.
    """

    sources: Sequence[str]
    out: str
    encoder: Path
    encoder_id: str = ""
    text: str = "text"
    document: str = "doc_id"
    domain: str = "domain"
    charset: str = "utf-8"
    dtype: str = "float32"
    precision: str = "float32"
    keep: Sequence[str] = ()
    restart: bool = False
