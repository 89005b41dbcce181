"""`amn up`: server, workers and a jobs worker, until it is told to stop."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from ops import console
from ops.commands import options
from ops.errors import ServerFailed
from ops.jobs import jobs_possible
from ops.local.child import Child, unless_ignored
from ops.local.private import PASSWORD_FILE, password_of, private_file, private_folder, write_privately
from ops.local.server import ServerSettings
from ops.local.stack import Stack, StackSettings
from ops.settings import (
    DATA_DEFAULT,
    WORKERS_MAX,
    WORKERS_SHOWN,
    ServiceRecord,
    artifacts_folder,
    external_url,
    workers_default,
)
from producer.settings import masked
from workers.pool.child import our_environment, our_python

_LOOK_S = 0.5
#: Longest wait for the processes beside the workers before the greeting.
_READY_S_MAX = 30.0
_EXAMPLE = """\
    from producer import Producer

    with Producer() as producer:                 # reads REDIS_URL
        reply = producer.predict(context)        # (5, 768) unit-norm rows, oldest first
        print(reply.vector.shape, reply.confidence, reply.served_by)
"""


@click.command(short_help="Server and workers until Ctrl-C.")
@click.option(
    "--workers",
    "-w",
    type=click.IntRange(1, WORKERS_MAX),
    default=workers_default,
    show_default=WORKERS_SHOWN,
    help="AMN workers. One core is left for the server and everything else.",
)
@click.option(
    "--fallbacks", type=click.IntRange(0, 16), default=1, show_default=True, help="Fallback workers."
)
@click.option(
    "--port",
    "-p",
    type=click.IntRange(0, 65_535),
    default=0,
    help="Also listen on this loopback port, with a password. [default: unix socket only]",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The server's password. [env: AMN_PASSWORD itself; with --port: drawn, kept with the data]",
)
@click.option(
    "--no-password",
    is_flag=True,
    help="Let every user and program of this machine in over the port, to read and delete everything.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DATA_DEFAULT,
    show_default=True,
    help="Folder of the server's files.",
)
@options.policy
@options.sample_rate
@click.option(
    "--alerts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file that says where alerts are sent (docs/alerts.md). [env: AMN_ALERTS_FILE]",
)
@click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info", show_default=True)
@options.artifacts
@options.url_or_own
@options.queue
def up(
    workers: int,
    fallbacks: int,
    port: int,
    password_file: Path | None,
    no_password: bool,
    data: Path,
    policy: str,
    sample_rate: float,
    alerts: Path | None,
    log_level: str,
    artifacts: Path | None,
    url: str | None,
    queue: str | None,
) -> None:
    """Run the service on this machine until Ctrl-C or SIGTERM; then drain and stop.

    Starts an embedded server with an append-only file (none when --url or REDIS_URL names one),
    AMN workers, fallbacks, a shadow worker, a drift judge and a worker for `amn jobs`; and, when it
    is told where alerts go (docs/alerts.md), what sends them. What dies is started again, the server
    with what it had stored; a promoted model or bank is taken up by new workers, one at a time, and
    SIGHUP restarts them all in the same way, without losing a request.

    While it runs, every command in this folder that needs a server finds it by itself; with another
    --data they want AMN_UP_DATA, --url or REDIS_URL.

    \b
    Examples:
      amn up
      amn up --workers 4 --port 6379 --data /srv/amn
    """
    # Here, and not above: it loads an HTTP client, which the other commands need not wait for.
    from ops.alerts.config import configured, load_usable

    sends = configured(alerts) and bool(load_usable(alerts).sinks)  # refuses now what it could not send later
    log = data / "workers.log"
    try:
        private_folder(data)
        private_file(log)
    except OSError as error:
        raise ServerFailed(f"the data folder {data} cannot be used: {error}; give --data") from error
    password, drawn = "", False
    if not no_password and not external_url(url):
        password, drawn = password_of(data, password_file, needed=bool(port))
    stack = Stack(
        StackSettings(
            url=external_url(url),
            server=ServerSettings(data=data, port=port, append_only=True, password=password),
            counts={"amn": workers, "fallback": fallbacks, "shadow": 1 if sample_rate else 0},
            queue=queue or "main",
            policy=policy,
            artifacts=artifacts_folder(artifacts),
            sample_rate=sample_rate,
            log_level=log_level,
            worker_log=log,
        )
    )
    sender = ["alerts", "run", *(["--config", str(alerts)] if alerts else [])] if sends else []
    _serve(stack, log, log_level, sender, drawn)


def _serve(stack: Stack, log: Path, log_level: str, sender: list[str], drawn: bool) -> None:
    """Starts everything, says so, and looks after it until it is told to stop.

    Args:
        sender: Words of the command that sends alerts; none without sinks.
        drawn: Whether the password was drawn just now, and is to be shown.
    """
    stopping, again, data = threading.Event(), threading.Event(), log.parent
    _stop_on_signals(stopping, again)
    with contextlib.ExitStack() as undo:
        undo.enter_context(stack)
        # Not before the folder is ours: another `amn up` may run in it, with another password.
        if password := stack.settings.server.password:
            write_privately(data / PASSWORD_FILE, password + "\n")
        wanted = [("the jobs worker", ["jobs", "worker"])] * jobs_possible(stack.url)
        wanted += [("the judge", ["drift", "judge"])]
        wanted += [("the sender of alerts", sender)] * bool(sender)
        beside = []
        for name, words in wanted:
            beside.append(_beside(stack, log, log_level, name, words))
            undo.callback(beside[-1].stop)
        served = ServiceRecord(
            url=stack.url, queue=stack.settings.queue, artifacts=str(stack.settings.artifacts.resolve())
        )
        undo.callback(served.write(data).unlink, missing_ok=True)
        _greet(stack, log, drawn, _came_up(beside))
        _look_after(stack, beside, stopping, again)
        console.say("draining", err=True)
    console.say("stopped", err=True)


def _look_after(stack: Stack, beside: list[Child], stopping: threading.Event, again: threading.Event) -> None:
    """Starts again what died, until it is told to stop; what the system does not allow, later."""
    trouble = ""
    while not stopping.wait(_LOOK_S):
        if again.is_set():
            again.clear()
            stack.restart_workers()
            console.say("rolling restart of the workers", err=True)
        try:
            for news in _started_again(stack, beside):
                console.say(news, err=True)
            trouble = ""
        except OSError as error:  # the disk is full, there is no free process
            if trouble != str(error):
                console.say(f"cannot start again what died: {error}", err=True)
            trouble = str(error)


def _started_again(stack: Stack, beside: list[Child]) -> Iterator[str]:
    if stack.server is not None and (code := stack.server.poll()) is not None:
        log = stack.server.log_path
        yield f"the embedded server ended by itself (code {code}) and was started again; see {log}"
    for child in beside:
        if news := child.poll():
            yield f"{news} (it is started again)"


def _beside(stack: Stack, log: Path, log_level: str, name: str, words: list[str]) -> Child:
    """A command of ours that runs beside the workers."""
    command = our_python("ops.cli", *words, "--log-level", log_level, "--queue", stack.settings.queue)
    child = Child(command, our_environment(REDIS_URL=stack.url), log, name)
    child.start()
    return child


def _came_up(beside: list[Child]) -> list[str]:
    """Names of those that work; of the others, what became of them is said."""
    give_up_at_s, found = time.monotonic() + _READY_S_MAX, []
    for child in beside:
        if child.came_up(give_up_at_s - time.monotonic()):
            found.append(child.name)
        else:
            console.say(f"{child.last_words()} (it is started again)", err=True)
    return found


def _greet(stack: Stack, log: Path, drawn: bool, beside: list[str]) -> None:
    settings, out = stack.settings, console.out()
    kinds = ", ".join(f"{count} {kind}" for kind, count in settings.counts.items() if count)
    what = f": {', '.join([kinds, *beside])}, on queue {settings.queue}; logs in {log}\n"
    out.print(console.styled("ready", "bold green"), what, sep="")
    out.print(f"export REDIS_URL={_pasted(stack.url, settings.server)}", soft_wrap=True)
    if stack.server is not None and settings.server.port:
        url = _pasted(stack.server.tcp_url, settings.server)
        out.print(f"export REDIS_URL={url}   # the same over loopback TCP", soft_wrap=True)
    if drawn:
        said = f"The password, shown this once and kept in {log.with_name(PASSWORD_FILE)}: "
        out.print(said + settings.server.password, soft_wrap=True)
    out.print(f"\n{_EXAMPLE}\nCtrl-C drains and stops.")


def _pasted(url: str, server: ServerSettings) -> str:
    """An address for a shell, which reads the password where we keep it."""
    if not server.password or server.data is None or server.password not in url:
        return shlex.quote(masked(url))
    before, after = url.split(server.password, 1)
    return f"{before}$(cat {shlex.quote(str(server.data.resolve() / PASSWORD_FILE))}){after}"


def _stop_on_signals(stopping: threading.Event, again: threading.Event) -> None:
    """SIGTERM and SIGINT stop. SIGHUP asks for a rolling restart, unless our terminal was closed."""
    had_terminal = _has_terminal()

    def on_signal(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and _has_terminal() == had_terminal:
            again.set()
            return
        if stopping.is_set():  # a second signal does not wait for the drain
            raise SystemExit(128 + number)
        stopping.set()

    unless_ignored(on_signal, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
