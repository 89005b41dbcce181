"""Files: looked at before they are read, written aside, and whole or not there."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amn.data.arrays import FileRows, load_npz, writing_rows
from amn.errors import FileRefused
from amn.files import check_output, making_folder, write_whole, writing
from ops.app import run

VECTORS = np.eye(12, 768, dtype=np.float32)
CONTEXTS = np.repeat(VECTORS[:10, None], 5, axis=1)
SAMPLE = Path("artifacts/sample/sequences.npz").resolve()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "in.npy", CONTEXTS)
    return tmp_path / "in.npy"


# What is read


def header(shape: str, descr: str = "'<f4'", fortran: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def packed(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


GOOD = saved(CONTEXTS)
BROKEN_NPY = {
    "empty": (b"", "reading magic string"),
    "text": (b"1,2,3\n" * 50, "magic string"),
    "no end": (header("(10, 5, 768"), "header is damaged"),
    "a power": (header("(9**30, 5, 768)"), "Cannot parse|malformed"),
    "negative": (header("(-4, 5, 768)"), r"shape \(-4, 5, 768\)"),
    "huge": (header("(4000000000000000000, 5, 768)"), "cut short"),
    "large": (header("(999999999999, 5, 768)"), "cut short"),
    "cut": (GOOD[:-1], "cut short"),
    "only a header": (GOOD[:128], "cut short"),
    "half a header": (GOOD[:60], "EOF|expected"),
    "objects": (saved(np.array([{"a": 1}], dtype=object)), "Python objects"),
    "Fortran order": (saved(np.asfortranarray(CONTEXTS)), "Fortran order"),
    "unknown type": (header("(10, 5, 768)", "'<x9'"), "not a valid dtype|not understood"),
    "an archive": (packed(("vectors.npy", GOOD)), "is an archive"),
    "a long header": (
        b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 99,
        "EOF|expected|large",
    ),
}
BROKEN_NPZ = {
    "no archive": (GOOD, "not a zip file"),
    "cut": (packed(("vectors.npy", GOOD))[:-200], "not a zip file"),
    "damaged": (packed(("vectors.npy", GOOD)).replace(b"\x00\x00\x80?", b"\x00\x01\x80?", 1)[:-1], "."),
    "a bomb": (
        packed(("vectors.npy", header("(100000, 768)") + bytes(307_200_000))),
        "to 307,200,000: no vectors do",
    ),
    "a member that is cut": (packed(("vectors.npy", saved(VECTORS)[:-9])), "promises"),
    "objects": (packed(("vectors.npy", saved(np.array([{}], dtype=object)))), "Python objects"),
    "text": (packed(("vectors.npy", b"hello, this is no array")), "magic string"),
}


@pytest.mark.parametrize("what", BROKEN_NPY)
def test_a_broken_npy_is_named_with_what_is_wrong(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, said = BROKEN_NPY[what]
    path = tmp_path / "in.npy"
    path.write_bytes(data)
    with pytest.raises(FileRefused, match=f"(?s)in.npy cannot be read as an .npy file: .*({said})"):
        FileRows(path)
    for words in (
        ["predict", path, "--out", tmp_path / "out.npy", "--direct"],
        ["bank", "build", path, "--out", tmp_path / "b", "--encoder", "e"],
    ):
        assert run([str(word) for word in words]) == 1
        error = capsys.readouterr().err
        assert error.startswith((f"amn: {path} cannot be read", f"amn: {path} is empty"))
        assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["in.npy"]


@pytest.mark.parametrize("what", BROKEN_NPZ)
def test_a_broken_npz_is_named_with_what_is_wrong(what: str, tmp_path: Path) -> None:
    data, said = BROKEN_NPZ[what]
    path = tmp_path / "in.npz"
    path.write_bytes(data)
    with pytest.raises(FileRefused, match=f"(?s)in.npz cannot be read as an .npz file: .*({said})"):
        load_npz(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a FIFO", "a folder"])
def test_what_is_no_regular_file_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "in.npy")
    with pytest.raises(FileRefused, match="no regular file"):
        FileRows(tmp_path / "in.npy")
    with pytest.raises(FileRefused, match="no regular file"):
        load_npz(tmp_path / "in.npy")


def test_rows_of_a_file_are_those_of_the_array(source: Path) -> None:
    rows = FileRows(source)
    assert (rows.shape, rows.ndim, rows.dtype, len(rows)) == ((10, 5, 768), 3, np.float32, 10)
    for index in (slice(None), slice(2, 5), slice(8, 99), slice(7, 2), slice(None, None, 3), slice(8, 1, -2)):
        np.testing.assert_array_equal(rows[index], CONTEXTS[index])
    for index in ([3, 4, 5, 1, 1, 9], [], [[1, 2], [0, -1]]):
        np.testing.assert_array_equal(rows[np.array(index, int)], CONTEXTS[np.array(index, int)])
    np.testing.assert_array_equal(rows[-1], CONTEXTS[-1])
    with pytest.raises(IndexError):
        rows[np.array([10])]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(source: Path) -> None:
    rows = FileRows(source)
    os.truncate(source, 5000)
    with pytest.raises(FileRefused, match=r"in\.npy became shorter while it was read"):
        rows[5:7]


def test_an_input_that_shrinks_under_a_prediction_ends_with_one_line(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = "ops.predict.engines.checked"
    monkeypatch.setattr(check, lambda block, _: os.truncate(source, 200) or block)
    monkeypatch.setattr("ops.predict.dataset.BLOCK_ROWS", 2)
    assert run(["predict", str(source), "--out", str(source.with_name("out")), "--direct"]) == 1
    assert f"amn: {source} became shorter while it was read" in capsys.readouterr().err
    assert [file.name for file in (source.parent / "out").iterdir()] == ["_manifest.json"]


# What is written


def by_name(source: Path) -> Path:
    return source


def by_symlink(source: Path) -> Path:
    (source.parent / "link").symlink_to("in.npy")
    return source.parent / "link"


def by_hard_link(source: Path) -> Path:
    (source.parent / "hard.npy").hardlink_to(source)
    return source.parent / "hard.npy"


def by_a_linked_folder(source: Path) -> Path:
    (source.parent / "here").symlink_to(".")
    return source.parent / "here" / ".." / source.parent.name / "in.npy"


@pytest.mark.parametrize("name", [by_name, by_symlink, by_hard_link, by_a_linked_folder])
@pytest.mark.parametrize(
    "how", [["predict"], ["predict", "--direct"], ["jobs", "submit", "predict"]], ids=" ".join
)
def test_the_source_is_never_the_target_by_whatever_name(
    name: Callable[[Path], Path], how: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *how,
        str(source),
        *("--out", str(name(source))),
        *(["--url", "redis://127.0.0.1:1"] if "--direct" not in how else []),
    ]
    assert run(words) == 1
    assert "name another" in capsys.readouterr().err
    assert source.read_bytes() == GOOD


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # a socket's address is short
        made.bind(path.name)


SPECIAL = {
    "FIFO": os.mkfifo,
    "socket": listening,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_rows_go_to_a_regular_file_and_what_is_none_stays_what_it_is(
    kind: str, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    SPECIAL[kind](source.parent / "out.npy")
    assert run(["predict", str(source), "--out", "out.npy", "--direct"]) == 1
    assert capsys.readouterr().err == f"amn: out.npy is a {kind}; name the file to write\n"
    assert not (source.parent / "out.npy").is_file()


def test_a_text_goes_through_a_fifo_and_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_whole(tmp_path / "pipe", "whole")
        assert reader.communicate()[0] == b"whole"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write_whole(Path("/dev/null"), "whole")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_file_keeps_its_mode_and_a_link_to_it_stays(mode: int, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(mode)
    (tmp_path / "link").symlink_to("old")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert ((tmp_path / "old").read_text(), (tmp_path / "old").stat().st_mode & 0o777) == ("new", mode)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_or_folder_follows_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", "new")
        with making_folder(tmp_path / "folder") as folder:
            write_whole(folder / "file", "new")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder", "folder/file")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "caf\udce9", "a\nb", "-"], ids=ascii)
def test_every_name_that_the_system_takes_can_be_written(name: str, tmp_path: Path) -> None:
    write_whole(tmp_path / name, "text")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with pytest.raises(FileRefused, match="cannot be written: File name too long"):
        write_whole(tmp_path / ("n" * 256), "text")


def limited(bytes_max: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))


def test_a_full_disk_is_named_and_leaves_nothing(source: Path) -> None:
    words = ["bank", "build", "vectors.npy", "--out", "out", "--encoder", "e"]
    np.save(source.with_name("vectors.npy"), np.eye(600, 768, dtype=np.float32))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ops.cli", *words],
        cwd=source.parent,
        env={**os.environ, "AMN_ARTIFACTS": str(SAMPLE.parent.parent / "lvm")},
        preexec_fn=limited(20_000),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("cannot be written: File too large")
    assert done.stderr.startswith("amn: ")
    assert sorted(file.name for file in source.parent.iterdir()) == ["in.npy", "vectors.npy"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "old")
    with contextlib.suppress(ZeroDivisionError), writing(tmp_path / "file") as file:
        file.write(b"half")
        raise ZeroDivisionError
    with contextlib.suppress(ZeroDivisionError), making_folder(tmp_path / "folder"):
        raise ZeroDivisionError
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.parametrize("how", ["writing", "making_folder"])
def test_two_writers_of_one_name_meet_and_what_a_killed_one_left_is_removed(how: str, tmp_path: Path) -> None:
    code = f"import sys, time; from pathlib import Path; from amn.files import {how}\n"
    code += f"with {how}(Path('out')): print('in', flush=True); time.sleep(60)"
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer:
        assert writer.stdout.readline() == b"in\n"
        with pytest.raises(FileRefused, match="is being written by another process"):
            write_whole(tmp_path / "out", "text")
        write_whole(tmp_path / "other", "text")
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
    assert len(list(tmp_path.glob(".amn-*"))) == 1
    write_whole(tmp_path / "other", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


def test_what_only_looks_like_a_writers_file_stays(tmp_path: Path) -> None:
    (tmp_path / ".amn-notes.part").mkdir()
    (tmp_path / ".amn-notes.part" / "mine").touch()
    write_whole(tmp_path / "out", "text")
    assert (tmp_path / ".amn-notes.part" / "mine").exists()


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("amn.files.fcntl.flock", refuse)
    write_whole(tmp_path / "out", "text")
    with making_folder(tmp_path / "folder") as folder:
        (folder / "file").touch()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "out"]


def test_rows_are_put_in_any_order(tmp_path: Path) -> None:
    with writing_rows(tmp_path / "out.npy", 6, 3, "<f4") as rows:
        rows.put([5, 1], np.array([[5, 5, 5], [1, 1, 1]]))
        rows.put(slice(2, 4), np.full((2, 3), 2))
        rows.put([4], np.nan)
    with writing_rows(tmp_path / "mixed.npy", 4, 1, "<f4") as rows:
        rows.put([0, 2, 1, 3], np.array([[0], [2], [1], [3]]))
    assert np.load(tmp_path / "mixed.npy").ravel().tolist() == [0, 1, 2, 3]
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(found[:, 0], np.array([0, 1, 2, 2, np.nan, 5], "f4"))


def test_an_output_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for name, said in (("no/out", "does not exist; make it first"), ("circle", "cannot be written: ")):
        with pytest.raises(FileRefused, match=said):
            check_output(tmp_path / name)
