"""One run that makes the larger corpus: packages, the encoder, and documents of their prose."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amn.data.vectors import WINDOW
from amn.files import write_whole, writing
from amn.output import without_surrogates
from ops.corpus.packages import download, known_packages, make_encoder, sha256_of, unpacked
from ops.corpus.prose import paragraphs
from ops.encode.chunks import chunks
from ops.encode.encoder import hash_of

PACKAGES = Path(__file__).with_name("packages.toml")
#: Fewer chunks hold a window at most; more of one article, or of one domain, would outweigh the others.
ARTICLE_CHUNKS_MIN, ARTICLE_CHUNKS_MAX, DOMAIN_CHUNKS_MAX = WINDOW + 1, 400, 12_000


@dataclass(frozen=True, slots=True)
class Article:
    """An article of prose, with the number of its chunks and of those of its domain before it."""

    id: str
    domain: str
    text: str
    chunks: int
    before: int


def build(
    out: Path, packages: Path = PACKAGES, on_domain: Callable[[int, int, str], None] = lambda *_: None
) -> dict[str, Any]:
    """Make the corpus in a folder: `packages`, `encoder` and `documents`; returns its `manifest.json`.

    A corpus that is finished stays as it is, also where the distribution has newer packages meanwhile.

    Args:
        packages: A file of domains and the names of their packages.
        on_domain: Gets the number of domains that are done, of all, and the name of the next one.

    Raises:
        FileRefused: A package or the encoder cannot be downloaded, or nothing can be written.
    """
    manifest, encoder, documents = out / "manifest.json", out / "encoder", out / "documents/documents.jsonl"
    if manifest.exists():
        earlier: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
        return earlier
    domains: dict[str, str] = tomllib.loads(packages.read_text("utf-8"))["domains"]
    known = known_packages(list(domains.values()))
    download(known, out / "packages")
    if not encoder.exists():
        make_encoder(encoder)
    seen: set[int] = set()
    found: list[Article] = []
    for number, (domain, name) in enumerate(domains.items()):
        on_domain(number, len(domains), domain)
        found += _articles(domain, out / "packages" / known[name].file, seen)
    _write(documents, found)
    about = {
        "packages": {one.file: one.sha256 for one in known.values()},
        "encoder_sha256": hash_of(encoder),
        "documents_sha256": sha256_of(documents),
        "chunks": {domain: sum(one.chunks for one in found if one.domain == domain) for domain in domains},
    }
    write_whole(manifest, json.dumps(about, indent=1) + "\n")
    return about


def _articles(domain: str, package: Path, seen: set[int]) -> Iterator[Article]:
    """Yield the articles of a package until its domain has enough; `seen` are paragraphs of all so far."""
    before = 0
    with unpacked(package) as folder:
        files = {without_surrogates(path.relative_to(folder).as_posix()): path for path in folder.rglob("*")}
        # By a hash of the name, so that a domain of which only a part is taken has something of everything.
        for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
            path = files[name]
            if not path.is_file() or path.is_symlink():
                continue
            text = "\n\n".join(one for one in paragraphs(path, name) if _is_new(one, seen))
            pieces = chunks(text)[: min(ARTICLE_CHUNKS_MAX, DOMAIN_CHUNKS_MAX - before)]
            if len(pieces) < ARTICLE_CHUNKS_MIN:
                continue
            yield Article(f"{domain}/{name}", domain, text[: pieces[-1].end], len(pieces), before)
            before += len(pieces)
            if before > DOMAIN_CHUNKS_MAX - ARTICLE_CHUNKS_MIN:
                return


def _is_new(paragraph: str, seen: set[int]) -> bool:
    """Return whether the letters of a paragraph were not seen before, and remember them."""
    letters = re.sub("[^a-z]", "", paragraph.lower())
    key = int.from_bytes(hashlib.blake2b(letters.encode(), digest_size=8).digest())
    if key in seen:
        return False
    seen.add(key)
    return True


def _write(path: Path, articles: list[Article]) -> None:
    """Write the articles as JSONL, the first ones of each domain first: a part of it is of all domains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        for one in sorted(articles, key=lambda one: (one.before, one.domain)):
            line = {"doc_id": one.id, "domain": one.domain, "text": one.text}
            file.write(json.dumps(line).encode() + b"\n")
