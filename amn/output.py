"""Text that leaves a program: for a terminal, for a log, for another program.

Much of it was written by others: names, reasons, errors, paths. A terminal obeys control characters, a
reader of JSON knows neither NaN nor bytes, and a stream may be closed, full, or of an encoding that lacks
a character. This module meets each of these; it imports nothing beyond the standard library.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

#: Controls of terminals (C0, DEL, C1), and characters that turn the direction of what follows.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029]
_CONTROLS += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ONE_LINE = {code: repr(chr(code))[1:-1] for code in _CONTROLS}
_LINES = {code: text for code, text in _ONE_LINE.items() if chr(code) not in "\n\t"}


def plain(text: object, *, lines: bool = False) -> str:
    """Text that a terminal shows and does not obey: `\\x1b[31m` instead of red.

    Args:
        lines: Keep line ends and tabs, which are escaped as well in what is to stay on one line.
    """
    return str(text).translate(_LINES if lines else _ONE_LINE)


def without_surrogates(text: str) -> str:
    """Bytes of another encoding, which Python keeps as lone surrogates, become replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def strict_json(value: object, *, indent: int | None = None, compact: bool = False) -> str:
    """JSON that every reader takes: ASCII, keys are strings, NaN and infinity are null."""
    separators = (",", ":") if compact else None
    return json.dumps(_strict(value), indent=indent, separators=separators, allow_nan=False)


def ready_streams() -> None:
    """Makes the standard streams such that printing does not fail for what is printed.

    A closed one is opened on /dev/null: otherwise the next file that is opened gets its number, and what
    is printed goes into that file. What the encoding lacks is written as an escape. Notes and logs on
    standard error end nothing when they cannot be written: the disk is full, the terminal is gone.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stderr, Lossy):
        sys.stderr = cast(TextIO, Lossy(sys.stderr))


class Lossy:
    """A stream that drops what it cannot write: on a full disk, or where nobody reads any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Does what the stream does, but for its errors."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Does what the stream does, but for its errors."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def flushed() -> str | None:
    """Writes out what standard output holds. If it cannot, drops the rest and returns why: "" when whoever
    read it has gone, which is no news to anybody."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop_output()
        return "" if isinstance(error, BrokenPipeError) else str(error.strerror)
    return None


def drop_output() -> None:
    """From here on standard output goes nowhere: the interpreter would complain once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _strict(value: Any) -> Any:
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_text(key): _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_strict(one) for one in value]
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy
        return _strict(value.tolist())
    return _text(value)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else without_surrogates(str(value))
