"""`amn up`: all parts of a service, until it is told to stop."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.errors import ServerFailed
from ops.local.beside import unless_ignored
from ops.local.parts import BESIDE
from ops.local.private import PASSWORD_FILE, password_of, private_file, private_folder, write_privately
from ops.local.server import ServerSettings
from ops.local.stack import Stack
from ops.settings import (
    DATA_DEFAULT,
    PAGE_PORT,
    WORKERS_MAX,
    WORKERS_SHOWN,
    ServiceRecord,
    external_url,
    jobs_possible,
    workers_default,
)
from producer.settings import masked

_CHECK_S = 0.5
_PAGE = "the page"
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
@click.option("--fallbacks", type=click.IntRange(0, 16), default=1, help="Fallback workers.")
@click.option(
    "--port",
    "-p",
    type=click.IntRange(0, 65_535),
    default=0,
    help="Also listen on this loopback port, with a password. [default: unix socket only]",
)
@click.option(
    "--password-file",
    type=options.FILE,
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
    help="Folder of the server's files.",
)
@options.policy
@options.sample_rate
@click.option(
    "--alerts",
    type=options.FILE,
    help="TOML file that says where alerts are sent (docs/alerts.md). [env: AMN_ALERTS_FILE]",
)
@click.option("--dashboard/--no-dashboard", default=True, help="Show the service in a browser (the default).")
@click.option(
    "--dashboard-port",
    type=click.IntRange(1, 65_535),
    help=f"Port of that page. [default: {PAGE_PORT}; any while that one is taken]",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65_535),
    help="Also answer Prometheus on this loopback port (`amn metrics`). [default: not]",
)
@options.log_level
@options.artifacts
@options.url_or_own
@options.queue
def up(**choices: Any) -> None:
    """Run the service on this machine until Ctrl-C or SIGTERM; then drain and stop.

    Starts an embedded server with an append-only file (none when --url or REDIS_URL names one),
    AMN workers, fallbacks, a shadow worker, a drift judge, a worker for `amn jobs` and a page for
    the browser; and, when it is told where alerts go (docs/alerts.md), what sends them. What dies or
    hangs is started again, the server with what it had stored; a promoted model or bank is taken up by new
    workers, one at a time, and SIGHUP restarts them all in the same way, without losing a request.

    While it runs, every command in this folder that needs a server finds it by itself; with another
    --data they want AMN_UP_DATA, --url or REDIS_URL.

    \b
    Examples:
      amn up
      amn up --workers 4 --port 6379 --data /srv/amn
    """
    data, url = choices["data"], external_url(choices["url"])
    page_port = (choices["dashboard_port"] or _page_port()) if choices["dashboard"] else 0
    beside = _beside(choices["alerts"], url, {"page": page_port, "metrics": choices["metrics_port"] or 0})
    try:
        private_folder(data)
        private_file(data / "workers.log")
    except OSError as error:
        raise ServerFailed(f"the data folder {data} cannot be used: {error}; give --data") from error
    password, drawn = "", False
    if not choices["no_password"] and not url:
        password, drawn = password_of(data, choices["password_file"], needed=bool(choices["port"]))
    server = ServerSettings(data=data, port=choices["port"], append_only=True, password=password)
    settings = options.pool_settings(
        choices,
        url=url or "",
        queue=choices["queue"] or "main",
        log_level=choices["log_level"],
        log_file=data / "workers.log",
    )
    counts = options.worker_counts(choices, choices["fallbacks"])
    _serve(Stack(counts, settings, None if url else server), data, beside, drawn)


def _page_port() -> int:
    """The usual port of the page, or one that is free when another service has that."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PAGE_PORT))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _beside(alerts: Path | None, url: str | None, ports: Mapping[str, int]) -> dict[str, list[str]]:
    """The words of the commands that run beside the workers, by name.

    Args:
        ports: Of the page and of the metrics; 0 for none.

    Raises:
        SinksRefused: Alerts cannot be sent as it is described.
    """
    # Here, and not above: it loads an HTTP client, which the other commands need not wait for.
    from ops.alerts.config import configured, load_usable

    told = configured(alerts) and bool(load_usable(alerts).sinks)
    there = {"": True, "alerts": told, "jobs": not url or jobs_possible(url)}
    there |= {name: port > 0 for name, port in ports.items()}
    more = {"alerts": ["--config", str(alerts)] if alerts else []}
    more |= {name: ["--port", str(port)] for name, port in ports.items()}
    return {part.title: [*part.words, *more.get(part.wants, [])] for part in BESIDE if there[part.wants]}


def _serve(stack: Stack, data: Path, beside: dict[str, list[str]], drawn: bool) -> None:
    """Starts everything, says so, and looks after it until it is told to stop.

    Args:
        drawn: True if the password was drawn just now, and is to be shown.
    """
    stopping, again = threading.Event(), threading.Event()
    _stop_on_signals(stopping, again)
    if console.err().is_terminal:  # a silent one looks like one that hangs
        console.say("starting, which takes some seconds", err=True)
    with stack:
        # Not before the folder is ours: another `amn up` may run in it, with another password.
        if stack.server is not None and stack.server.settings.password:
            write_privately(data / PASSWORD_FILE, stack.server.settings.password + "\n")
        for news in stack.start_beside(beside):
            console.say(news, err=True)
        url, queue, artifacts = stack.settings.url, stack.settings.queue, stack.settings.artifacts.resolve()
        record = ServiceRecord(url=url, queue=queue, artifacts=str(artifacts)).write(data)
        try:
            _greet(stack, data, drawn, beside)
            _look_after(stack, stopping, again)
            console.say("draining", err=True)
        finally:
            record.unlink(missing_ok=True)
    console.say("stopped", err=True)


def _look_after(stack: Stack, stopping: threading.Event, again: threading.Event) -> None:
    """Starts again what died, until it is told to stop; what the system does not allow, later."""
    trouble = ""
    while not stopping.wait(_CHECK_S):
        if again.is_set():
            again.clear()
            stack.restart_workers()
            console.say("rolling restart of the workers", err=True)
        before, trouble = trouble, ""
        try:
            for news in stack.revive():
                console.say(news, err=True)
        except OSError as error:  # the disk is full, there is no free process
            trouble = f"cannot start again what died: {error}"
            if trouble != before:
                console.say(trouble, err=True)


def _greet(stack: Stack, data: Path, drawn: bool, beside: Mapping[str, Sequence[str]]) -> None:
    settings, out = stack.settings, console.out()
    password = stack.server.settings.password if stack.server is not None else ""
    parts = [f"{count} {kind}" for kind, count in stack.counts.items()]
    parts += [one.name for one in stack.beside if one.child.is_ready()]
    what = f": {', '.join(parts)}, on queue {settings.queue}; logs in {settings.log_file}\n"
    out.print(console.styled("ready", "bold green"), what, sep="")
    out.print(f"export REDIS_URL={_pasted(settings.url, password, data)}", soft_wrap=True)
    if stack.server is not None and stack.server.settings.port:
        url = _pasted(stack.server.tcp_url, password, data)
        out.print(f"export REDIS_URL={url}   # the same over loopback TCP", soft_wrap=True)
    if drawn:
        said = f"The password, shown this once and kept in {data / PASSWORD_FILE}: "
        out.print(said + password, soft_wrap=True)
    if any(one.name == _PAGE and one.child.is_ready() for one in stack.beside):
        out.print(f"the page: http://127.0.0.1:{beside[_PAGE][-1]}", soft_wrap=True)
    out.print(f"\n{_EXAMPLE}\nCtrl-C drains and stops.")


def _pasted(url: str, password: str, data: Path) -> str:
    """An address for a shell, which reads the password where we keep it."""
    before, _, after = url.partition(password or "\n")
    if not after:
        return shlex.quote(masked(url))
    return f"{before}$(cat {shlex.quote(str(data.resolve() / PASSWORD_FILE))}){after}"


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
