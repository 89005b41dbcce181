"""Secrets of the sinks: named by where they are, shown as nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.errors import SinksRefused


class Secret:
    """A value that no log, repr or message shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The value, for the request that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def plain(value: str | Secret) -> str:
    """Of a value that may or may not be secret."""
    return value.reveal() if isinstance(value, Secret) else value


def resolve(reference: Any, what: str) -> Secret:
    """The secret that `{ env = "NAME" }` or `{ file = "path" }` names.

    Args:
        reference: As it stands in the file of sinks.
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
    if kind == "env":
        text = os.environ.get(str(name), "")
        where = f"environment variable {name}"
    else:
        where = f"file {name}"
        try:
            text = Path(str(name)).read_text("utf-8")
        except OSError as error:
            raise SinksRefused(f"{what}: cannot read {where} ({error.strerror})") from None
    if not text.strip():
        raise SinksRefused(f"{what}: {where} is empty or not set")
    return Secret(text.strip())
