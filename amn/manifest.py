"""The manifest of an artifact's folder, and the hashes of its files: one way for all artifacts."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from amn.errors import CheckpointError
from amn.files import write_whole

MANIFEST = "manifest.json"
Form = TypeVar("Form")
PIECE_BYTES = 1 << 24


def read_manifest(folder: Path, form: Callable[..., Form], *, artifact: str, remedy: str) -> Form:
    """The manifest of a folder, as `form` takes its fields.

    Args:
        artifact, remedy: For the error: what the folder is to hold, and what to do where it does not.

    Raises:
        CheckpointError: There is none, it is no JSON object, or its fields are others.
    """
    try:
        stored = json.loads((folder / MANIFEST).read_text("utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(f"it is a {type(stored).__name__}")
        return form(**stored)
    except FileNotFoundError:
        why = f"its {MANIFEST} does not exist"
    except ValueError as error:
        why = f"its {MANIFEST} is not a JSON object ({error})"
    except (OSError, TypeError) as error:
        why = str(error)
    raise CheckpointError(f"{artifact} {folder} cannot be read: {why}; {remedy}")


class EncoderName(NamedTuple):
    """An encoder: the id of its recipe, and the hash of its files; "" where nobody knows it."""

    encoder_id: str
    encoder_sha256: str = ""

    def __str__(self) -> str:
        return repr(self.encoder_id) + (f" ({self.encoder_sha256[:12]})" if self.encoder_sha256 else "")


class Encoded(Protocol):
    """Something that an encoder made, such as the manifest of a model or of a bank."""

    @property
    def encoder_id(self) -> str:
        """Id of its recipe."""

    @property
    def encoder_sha256(self) -> str:
        """Hash of its files; "" where nobody knows it."""


def check_one_encoder(made: Mapping[str, Encoded]) -> None:
    """Refuse what several encoders made: their vectors mean nothing to each other.

    Args:
        made: By name; encoders of one id and other files are two.

    Raises:
        CheckpointError: There are two of different encoders.
    """
    found = {EncoderName(one.encoder_id, one.encoder_sha256): name for name, one in made.items()}
    for (one, name), (other, other_name) in itertools.combinations(found.items(), 2):
        if one.encoder_id != other.encoder_id or (one.encoder_sha256 and other.encoder_sha256):
            raise CheckpointError(
                f"{name} is of encoder {one}, and {other_name} of {other}: the vectors of two encoders mean "
                "nothing to each other; give those of one"
            )


def write_manifest(folder: Path, content: Any, *, indent: int = 2) -> None:
    """Writes a dataclass or a dict in one step, so that no reader sees half of it."""
    fields = content if isinstance(content, dict) else dataclasses.asdict(content)
    write_whole(folder / MANIFEST, json.dumps(fields, indent=indent) + "\n")


def files_sha256(paths: Iterable[Path], on_piece: Callable[[str], None] | None = None) -> str:
    """SHA-256 of the bytes of files, one after the other; `on_piece` gets that of each 16 MiB."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                whole.update(piece)
                if on_piece is not None:
                    on_piece(hashlib.sha256(piece).hexdigest())
    return whole.hexdigest()


def content_sha256(content: Any) -> str:
    """SHA-256 of plain values as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_sha256(name: str, found: str, expected: str, remedy: str) -> None:
    """Refuses bytes that are not those that a manifest was written for.

    Raises:
        CheckpointError: The hashes differ.
    """
    if found != expected:
        raise CheckpointError(
            f"{name} has sha256 {found[:12]}, the manifest says {expected[:12]}; it was altered or cut "
            f"short, {remedy}"
        )


def check_file(path: Path, expected: str, remedy: str) -> None:
    """Refuses a file that is missing, or whose bytes are not those that a manifest was written for.

    Raises:
        CheckpointError: It is not there, or its hash differs.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {remedy}")
    check_sha256(str(path), files_sha256([path]), expected, remedy)
