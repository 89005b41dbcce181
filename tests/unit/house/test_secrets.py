"""What is secret shows in no repr, and what is private is so on the disk."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib
import inspect
import os
import pkgutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import amn
import ops
import producer
import workers
from ops.alerts.secret import Secret, plain
from ops.app import run
from ops.errors import ServerFailed
from ops.local.private import PASSWORD_FILE, password_of, private_file, private_folder, write_privately
from producer.settings import ProducerSettings
from producer.transport.connection import connect, connect_async

SECRET = "hunter2-hunter2-hunter2"
URL = f"redis://user:{SECRET}@127.0.0.1:6379/0"


def dataclasses_of_ours() -> Iterator[type[Any]]:
    for package in (amn, ops, producer, workers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith(("__main__", "._kernel")):
                continue
            for value in vars(importlib.import_module(module.name)).values():
                ours = inspect.isclass(value) and value.__module__ == module.name
                if ours and dataclasses.is_dataclass(value) and not inspect.isabstract(value):
                    yield value


def filled(kind: type[Any]) -> Any:
    """One whose every field that may hold an address or a password does; nothing is checked."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        holds = ("url" in field.name and field.name != "runbook_url") or "password" in field.name
        value: str | Secret = URL if "url" in field.name else SECRET
        if str(field.type).startswith("Secret"):
            value = Secret(str(value))
        object.__setattr__(made, field.name, value if holds else None)
    return made


def test_no_repr_of_ours_shows_a_password() -> None:
    seen = set()
    for kind in dataclasses_of_ours():
        made = filled(kind)
        if any(SECRET in str(plain(getattr(made, field.name))) for field in dataclasses.fields(kind)):
            seen.add(kind.__name__)
            assert SECRET not in repr(made), kind
    assert {"ProducerSettings", "PoolSettings", "ServerSettings", "Address"} <= seen


@pytest.mark.parametrize(
    "url",
    [
        URL,
        f"unix://:{SECRET}@/run/redis.sock",
        f"redis+sentinel://:{SECRET}@127.0.0.1:1/m/0?sentinel_password={SECRET}",
        f"redis+cluster://:{SECRET}@127.0.0.1:1",
    ],
)
def test_no_client_of_the_driver_shows_a_password(url: str) -> None:
    settings = ProducerSettings(url=url)
    clients = (connect(settings), connect_async(settings))
    for one in (settings, *clients, *(client.connection_pool for client in clients)):
        assert SECRET not in f"{one!r} {one}"


@pytest.fixture
def any_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_data_folder_and_what_is_ours_in_it_is_narrowed(tmp_path: Path, any_umask: None) -> None:
    data = tmp_path / "a" / "d"
    (data / "appendonlydir").mkdir(parents=True)
    files = [data / "appendonlydir" / "appendonly.aof.1.incr.aof", data / "server.log", data / "lock"]
    for file in files:
        file.touch(0o666)
    private_folder(data)
    private_file(data / "workers.log")
    assert [mode(one) for one in (data, data / "appendonlydir")] == [0o700] * 2
    assert [mode(one) for one in (*files, data / "workers.log")] == [0o600] * 4


def test_an_open_folder_with_the_files_of_others_is_refused_as_it_is(tmp_path: Path, any_umask: None) -> None:
    data = tmp_path / "shared"
    data.mkdir(0o755)
    (data / "thesis.tex").touch(0o644)
    with pytest.raises(ServerFailed, match=r"thesis\.tex.*chmod 700.*--data"):
        private_folder(data)
    assert (mode(data), mode(data / "thesis.tex")) == (0o755, 0o644)
    data.chmod(0o700)
    private_folder(data)
    assert mode(data / "thesis.tex") == 0o644


def test_a_password_is_drawn_once_and_kept(
    tmp_path: Path, any_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMN_PASSWORD", raising=False)
    assert password_of(tmp_path, None, needed=False) == ("", False)
    first, drawn = password_of(tmp_path, None, needed=True)
    assert drawn
    assert len(first) >= 32
    write_privately(tmp_path / PASSWORD_FILE, first + "\n")
    assert mode(tmp_path / PASSWORD_FILE) == 0o600
    assert password_of(tmp_path, None, needed=True) == (first, False)
    (tmp_path / "given").write_text("x" * 20 + "\n")
    assert password_of(tmp_path, tmp_path / "given", needed=False) == ("x" * 20, False)
    monkeypatch.setenv("AMN_PASSWORD", "y" * 20)
    assert password_of(tmp_path, None, needed=True) == ("y" * 20, False)


@pytest.mark.parametrize("why", ["another one runs there", "the server is another"])
def test_an_up_that_does_not_start_its_server_leaves_the_password_alone(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ops.commands.up._stop_on_signals", lambda *_: None)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("AMN_PASSWORD", "y" * 20)
    private_folder(tmp_path)
    kept = tmp_path / PASSWORD_FILE
    kept.write_text("x" * 20)
    url = ["--url", f"unix://{tmp_path}/nothing.sock"] if why == "the server is another" else []
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(["up", "--data", str(tmp_path), *url]) == 1
    assert ("in use by another" in capsys.readouterr().err) is not bool(url)
    assert kept.read_text() == "x" * 20


@pytest.mark.parametrize("text", ["", "hunter2", f"{SECRET} {SECRET}", SECRET + "\nnew", SECRET + "\u00fc"])
def test_a_password_that_cannot_be_used_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "given").write_text(text, "utf-8")
    with pytest.raises(ServerFailed, match=r"openssl rand") as caught:
        password_of(tmp_path, tmp_path / "given", needed=True)
    assert not text or text not in str(caught.value)
    with pytest.raises(ServerFailed, match=r"cannot read"):
        password_of(tmp_path, tmp_path / "missing", needed=True)
