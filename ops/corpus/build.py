"""One run that makes the larger corpus: packages, the encoder, and documents of their prose."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amn.data.vectors import WINDOW
from amn.errors import FileRefused
from amn.files import write_whole, writing
from amn.output import without_surrogates
from ops.corpus.packages import download, known_packages, make_encoder, sha256_of, unpacked
from ops.corpus.prose import paragraphs
from ops.encode.chunks import chunks
from ops.encode.encoder import hash_of

PACKAGES = Path(__file__).with_name("packages.toml")
#: By Debian's policy; apt-get would take others for options of its own, some of which run programs.
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
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
    out: Path, packages: Path = PACKAGES, on_step: Callable[[str, int, int, str], None] = lambda *_: None
) -> dict[str, Any]:
    """Make the corpus in a folder: `packages`, `encoder` and `documents`; returns its `manifest.json`.

    A corpus that is finished stays as it is, also where the distribution has newer packages meanwhile.

    Args:
        packages: A file of domains and the names of their packages.
        on_step: Gets a step, the number of its parts that are done, of all, and the name of the next one.

    Raises:
        FileRefused: A package or the encoder cannot be downloaded, or nothing can be written; or the folder
            holds another corpus.
    """
    manifest, encoder, documents = out / "manifest.json", out / "encoder", out / "documents/documents.jsonl"
    if manifest.exists():
        return _finished(manifest, list_sha256=packages, documents_sha256=documents)
    domains = _listed(packages)
    known = known_packages(list(domains.values()))
    on_step("downloading", 0, 2, f"{len(known)} packages")
    download(known, out / "packages")
    on_step("downloading", 1, 2, "the encoder")
    if not encoder.exists():
        make_encoder(encoder)
    seen: set[int] = set()
    found: list[Article] = []
    for number, (domain, name) in enumerate(domains.items()):
        on_step("reading", number, len(domains), domain)
        found += _articles(domain, out / "packages" / known[name].file, seen)
    on_step("reading", len(domains), len(domains), "")
    _write(documents, found)
    about = {
        "list_sha256": sha256_of(packages),
        "packages": {one.file: one.sha256 for one in known.values()},
        "encoder_sha256": hash_of(encoder),
        "documents_sha256": sha256_of(documents),
        "chunks": {domain: sum(one.chunks for one in found if one.domain == domain) for domain in domains},
    }
    write_whole(manifest, json.dumps(about, indent=1) + "\n")
    return about


def _listed(packages: Path) -> dict[str, str]:
    """Read the names of packages by domain."""
    try:
        domains = tomllib.loads(packages.read_text("utf-8"))["domains"]
        if not domains or not all(type(name) is str and _NAME.fullmatch(name) for name in domains.values()):
            raise ValueError("a domain without the name of a package")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise FileRefused(
            f'{packages} is no list of packages ({error}); write a table [domains] of domain = "package"'
        ) from error
    return dict(domains)


def _finished(manifest: Path, **files: Path) -> dict[str, Any]:
    """Read the manifest of a finished corpus, which has the hashes of these files by name."""
    found: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
    for name, path in files.items():
        if not path.is_file() or sha256_of(path) != found.get(name):
            raise FileRefused(
                f"{manifest.parent} is a corpus of another {path.name}; remove it, or name another --out"
            )
    return found


def _articles(domain: str, package: Path, seen: set[int]) -> Iterator[Article]:
    """Yield the articles of a package until its domain has enough.

    `seen` are the paragraphs of all articles so far: one of a file that is dropped, or behind the end of an
    article that is cut, may still come in another file.
    """
    before = 0
    with unpacked(package) as folder:
        files = {without_surrogates(path.relative_to(folder).as_posix()): path for path in folder.rglob("*")}
        # By a hash of the name, so that a domain of which only a part is taken has something of everything.
        for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
            path = files[name]
            if not path.is_file() or path.is_symlink():
                continue
            new: dict[int, str] = {}
            for one in paragraphs(path, name):
                if (key := _key(one)) not in seen:
                    new.setdefault(key, one)
            text = "\n\n".join(new.values())
            pieces = chunks(text)[: min(ARTICLE_CHUNKS_MAX, DOMAIN_CHUNKS_MAX - before)]
            if len(pieces) < ARTICLE_CHUNKS_MIN:
                continue
            text = text[: pieces[-1].end]
            seen.update(itertools.islice(new, text.count("\n\n") + 1))
            yield Article(f"{domain}/{name}", domain, text, len(pieces), before)
            before += len(pieces)
            if before > DOMAIN_CHUNKS_MAX - ARTICLE_CHUNKS_MIN:
                return


def _key(paragraph: str) -> int:
    """Return a hash of the letters of a paragraph."""
    letters = re.sub("[^a-z]", "", paragraph.lower())
    return int.from_bytes(hashlib.blake2b(letters.encode(), digest_size=8).digest())


def _write(path: Path, articles: list[Article]) -> None:
    """Write the articles as JSONL, the first ones of each domain first: a part of it is of all domains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        for one in sorted(articles, key=lambda one: (one.before, one.domain)):
            line = {"doc_id": one.id, "domain": one.domain, "text": one.text}
            file.write(json.dumps(line).encode() + b"\n")
