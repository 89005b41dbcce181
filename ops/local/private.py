"""Folders, logs and passwords for this user alone, whatever existed before and whatever the umask."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ops.errors import ServerFailed

#: Files that `amn up` and its server leave in a data folder.
_OURS = (
    *("lock", "password", "url", "service.json", "redis.sock", "*.log", "*.pid"),
    *("dump.rdb", "temp-*", "appendonlydir", "appendonlydir/*", "nodes.conf"),
)
_OTHERS = 0o077
_LENGTH_MIN = 16
PASSWORD_FILE = "password"  # noqa: S105 - the name of a file


def private_folder(path: Path) -> None:
    """Makes a data folder for this user alone; of one that exists, narrows it and what is ours in it.

    Raises:
        ServerFailed: It is open to others and holds what is not ours, so that closing it might lock them out.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = {file for pattern in _OURS for file in path.glob(pattern)}
    if path.stat().st_mode & _OTHERS:
        foreign = sorted(file.name for file in path.iterdir() if file not in ours)
        if foreign:
            raise ServerFailed(
                f"the data folder {path} is open to other users and holds {foreign[0]!r}, which is not ours; "
                f"close it (chmod 700 {path}), or give --data a folder of its own"
            )
    path.chmod(0o700)
    for file in ours:
        mode = file.lstat().st_mode
        if mode & _OTHERS and not stat.S_ISLNK(mode):
            file.chmod(stat.S_IMODE(mode) & ~_OTHERS)


def private_file(path: Path) -> None:
    """Makes a file, if there is none, that this user alone may read: a log, before others write to it."""
    opened = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    os.fchmod(opened, 0o600)
    os.close(opened)


def write_privately(file: Path, text: str) -> None:
    """Writes a small file for this user alone, whole or not at all."""
    aside = file.with_name(f"temp-{file.name}")
    aside.unlink(missing_ok=True)
    private_file(aside)
    aside.write_text(text, "utf-8")
    aside.replace(file)


def password_of(data: Path, given: Path | None, *, needed: bool) -> tuple[str, bool]:
    """The server's password, and whether it was drawn just now: file > AMN_PASSWORD > the kept one.

    Whoever has started the server keeps it, so that clients that know it go on after a restart.

    Args:
        needed: True to draw one where nobody has given one; else there is none, which is "".

    Raises:
        ServerFailed: The one that was given cannot be used.
    """
    file, text = given or data / PASSWORD_FILE, os.environ.get("AMN_PASSWORD", "")
    if given is None and not text:
        if not needed:
            return "", False
        if not file.exists():
            return secrets.token_urlsafe(24), True
    if given is not None or not text:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ServerFailed(f"cannot read the password in {file}: {error}") from None
    text = text.rstrip("\r\n")
    if len(text) < _LENGTH_MIN or not text.isascii() or not text.isprintable() or " " in text:
        raise ServerFailed(  # it is not quoted in an error
            f"the password of {file} or AMN_PASSWORD cannot be used; draw one of at least {_LENGTH_MIN} "
            "printable ASCII characters, without spaces: openssl rand -hex 24"
        )
    return text, False
