"""Secrets of the sinks: named by where they are, shown as nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.errors import SinksRefused

_FILE_BYTES_MAX = 1024**2


class Secret:
    """A value that no log, repr or message shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Returns the value, for the request that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"


def plain(value: str | Secret) -> str:
    """Returns the plain text of a value that may or may not be secret."""
    return value.reveal() if isinstance(value, Secret) else value


def resolve(reference: Any, what: str) -> Secret:
    """Returns the secret that `{ env = "NAME" }` or `{ file = "path" }` names.

    Args:
        what: "sink pager: routing_key", for the error.

    Raises:
        SinksRefused: It is written out, or names nothing.
    """
    if not isinstance(reference, Mapping) or len(reference) != 1 or not set(reference) <= {"env", "file"}:
        raise SinksRefused(
            f"{what} must say where the secret is, not what it is: write "
            '{ env = "NAME" } or { file = "/run/secrets/name" }'
        )
    [(kind, name)] = reference.items()
    where = f"environment variable {name}" if kind == "env" else f"file {name}"
    text = os.environ.get(str(name), "") if kind == "env" else read_small(Path(str(name)), what)
    text = text.strip()
    if not text:
        raise SinksRefused(f"{what}: {where} is empty or not set")
    if not text.isprintable():
        raise SinksRefused(f"{what}: {where} holds a line break or a control character")
    return Secret(text)


def read_small(path: Path, what: str) -> str:
    """Returns the text of a regular file of at most a mebibyte, which a person wrote.

    Raises:
        SinksRefused: It cannot be read, or is no such file.
    """
    why = "no regular file" if path.exists() else "it is missing"
    try:
        if path.is_file():  # a pipe would be waited for, and a device has no end
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
            if len(data) <= _FILE_BYTES_MAX:
                return data.decode("utf-8")
            why = f"more than {_FILE_BYTES_MAX} bytes"
    except (OSError, ValueError) as error:
        why = str(error)
    raise SinksRefused(f"{what}: cannot read file {path} ({why})")
