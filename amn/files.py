"""Files that appear whole: looked at first, written aside, and renamed over the name they are for.

A file is written aside under a hidden name (`.amn-<hash of the name>-<user>.part`), which is locked while
its writer lives; the next writer in that folder removes those that a killed one left. A file that is
replaced gives its mode and, where possible, its owner to the new one; a new one follows the umask.
A symlink is followed: its target is replaced, and the link stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from amn.errors import FileRefused

#: Errors of a write without room, or on a broken disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_ASIDE = re.compile(r"\.amn-[0-9a-f]{16}-[0-9]+\.part")
_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


def check_output(path: Path, *sources: Path, stream: bool = False) -> Path:
    """Refuses an output that could not be written, before any work is done; returns where it goes.

    Args:
        sources: Files that are read meanwhile: none of them may be the output, by whatever name.
        stream: True if a FIFO or a character device will do, which cannot be written out of order.

    Raises:
        FileRefused: It is not a regular file, one of the sources, or may not be written; or its folder
            is missing.
    """
    try:
        target = path.resolve()
        there = path.stat() if path.exists() else None
    except (OSError, RuntimeError) as error:  # a name that is too long, a circle of links
        raise FileRefused(f"{path} cannot be written: {_why(error)}") from error
    if there is None:
        if not target.parent.is_dir():
            raise FileRefused(f"the folder {target.parent} does not exist; make it first")
    else:
        for source in sources:
            if source.exists() and os.path.samestat(source.stat(), there):
                raise FileRefused(f"{path} is the input {source} itself; name another output")
        kind = stat.S_IFMT(there.st_mode)
        if kind != stat.S_IFREG and not (stream and kind in (stat.S_IFIFO, stat.S_IFCHR)):
            raise FileRefused(f"{path} is a {_KINDS.get(kind, 'special file')}; name the file to write")
        if not os.access(path, os.W_OK):
            raise FileRefused(f"{path} may not be written (its mode is {stat.filemode(there.st_mode)})")
        if kind != stat.S_IFREG:
            return path
        if not target.exists():  # /dev/stdout can be that
            raise FileRefused(f"{path} has no name any more; name the file to write")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise FileRefused(f"the folder {target.parent} is not writable")
    return target


@contextlib.contextmanager
def writing(path: Path, *, room: int = 0) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends well, and leaves nothing when not.

    Args:
        room: Bytes that are reserved now, so that a full disk is known before the work is done.

    Raises:
        FileRefused: The output cannot be used, has no room, or another process writes it.
    """
    target = check_output(path)
    with _aside(path, target) as (_, opened), os.fdopen(opened, "w+b", closefd=False) as file:
        _like_the_old_one(target, opened)
        _reserve(opened, room)
        yield file
        file.flush()
        os.fsync(opened)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a small file at once; a FIFO or a character device gets it too.

    Raises:
        FileRefused: The output cannot be used, has no room, or another process writes it.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    target = check_output(path, stream=True)
    if target.exists() and not target.is_file():
        with _named(path), target.open("wb") as device:
            device.write(data)
        return
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends well.

    Raises:
        FileRefused: It exists already, cannot be made, or another process makes it.
    """
    if os.path.lexists(path):
        raise FileRefused(f"{path} exists already; name a new folder")
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _aside(path, path.parent.resolve() / path.name, folder=True) as (aside, _):
        try:
            yield aside
        except FileRefused as error:  # of a file in it
            raise FileRefused(str(error).replace(str(aside), str(path))) from error


@contextlib.contextmanager
def _aside(path: Path, target: Path, *, folder: bool = False) -> Iterator[tuple[Path, int]]:
    """A locked file or folder, opened, that takes the target's name when the block ends well."""
    # A short name, whatever the length of the target's; with the user, since others may not remove it.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    aside = target.with_name(f".amn-{name}-{os.getuid()}.part")
    with _named(path):
        opened = _created(aside, path, folder=folder)
        try:
            yield aside, opened
            os.replace(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True) if folder else aside.unlink(missing_ok=True)
            raise
        finally:
            os.close(opened)


def _created(aside: Path, path: Path, *, folder: bool = False) -> int:
    """Makes the file or folder, and locks it; the lock ends with its writer, however that ends."""
    while True:
        _sweep(aside.parent)
        try:
            if folder:
                aside.mkdir()
                opened = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
            else:
                opened = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            raise FileRefused(f"{path} is being written by another process ({aside})") from None
        try:
            mine = _locked(opened)
        except OSError:  # no such locks here, as for folders on NFS: then nobody can sweep it away either
            return opened
        if mine and aside.exists() and os.path.samestat(aside.stat(), os.fstat(opened)):
            return opened
        os.close(opened)  # swept away between the two steps


def _sweep(folder: Path) -> None:
    """Removes what writers left that were killed, and nothing that merely begins and ends alike."""
    for left in filter(lambda one: _ASIDE.fullmatch(one.name), folder.glob(".amn-*.part")):
        with contextlib.suppress(OSError):
            opened = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _locked(opened):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(opened)


def _locked(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _like_the_old_one(target: Path, opened: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        old = target.stat()
        os.fchmod(opened, stat.S_IMODE(old.st_mode) & 0o777)
        with contextlib.suppress(PermissionError):
            os.fchown(opened, old.st_uid, old.st_gid)


def _reserve(opened: int, room: int) -> None:
    if room and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(opened, 0, room)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file of a write that fails."""
    try:
        yield
    except OSError as error:
        if error.errno in (*_FULL, None) or error.filename is not None:  # None: NumPy, of a full disk
            raise FileRefused(f"{path} cannot be written: {_why(error)}") from error
        raise


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
