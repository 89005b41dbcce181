"""Commands that answer HTTP: `amn dashboard` for people, `amn gateway` for clients, `amn metrics`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.settings import GATEWAY_PORT, METRICS_PORT, PAGE_PORT, listening_token, producer_settings
from producer.settings import ProducerSettings
from workers.pool.child import follow_parent
from workers.pulse import Pulse


def _where(port: int) -> options.Decorator:
    """The options of a command that listens, which `_listening` takes."""
    return options.together(
        click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
        click.option("--port", "-p", type=click.IntRange(0, 65_535), default=port, show_default=True),
        options.log_level,
    )


@contextmanager
def _listening(
    variable: str, host: str, port: int, log_level: str, *, needed: bool = False, path: str = ""
) -> Iterator[tuple[str, socket.socket, Callable[[], None]]]:
    """Listens and says where; yields the token of a variable, the socket, and the beat of this process.

    Args:
        needed: True if there must be a token also on this machine.    path: Behind the address that is said.
    """
    from ops.web.serve import listen
    from workers.logs import configure_logs

    configure_logs(log_level)
    token = listening_token(variable, host, needed=needed)
    with listen(host, port) as opened:
        follow_parent()
        pulse = Pulse()
        pulse.ready()
        console.say(f"http://{host}:{opened.getsockname()[1]}{path}", err=True)
        yield token, opened, pulse.beat
        pulse.close()


@click.command(short_help="The page for on-call people.")
@_where(PAGE_PORT)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="A host name under which the page is asked for, such as that of a proxy; may be repeated.",
)
@click.option("--actions", is_flag=True, help="Let those who have the token replay, purge and silence.")
@options.server
def dashboard(names: tuple[str, ...], actions: bool, settings: ProducerSettings, **where: Any) -> None:
    """Show the service at http://HOST:PORT until Ctrl-C or SIGTERM; it changes nothing without --actions.

    An address that other machines reach, and --actions, want a token in AMN_DASHBOARD_TOKEN (16 characters or
    more), or in the file that AMN_DASHBOARD_TOKEN_FILE names: the page asks for it once. docs/dashboard.md
    says what is on the page.
    """
    from ops.page.serve import serve

    with _listening("AMN_DASHBOARD_TOKEN", needed=actions, **where) as (token, opened, beat):
        serve(settings, opened, beat, token=token, names=names, actions=actions)


@click.command(short_help="HTTP: the Open Inference Protocol v2.")
@_where(GATEWAY_PORT)
@options.partitions
@options.server
def gateway(settings: ProducerSettings, partitions: int | None, **where: Any) -> None:
    """Answer HTTP at http://HOST:PORT until Ctrl-C or SIGTERM, which drains.

    An address that other machines reach wants a token in AMN_GATEWAY_TOKEN (16 characters or more), or in
    the file that AMN_GATEWAY_TOKEN_FILE names. docs/gateway.md has the addresses, with examples.
    """
    from ops.gateway.serve import serve

    with _listening("AMN_GATEWAY_TOKEN", **where) as (token, opened, beat):
        serve(settings, opened, beat, token=token, partitions=partitions)


@click.command(short_help="Metrics for Prometheus.")
@_where(METRICS_PORT)
@click.option("--once", is_flag=True, help="Print them once instead.")
@click.option("--rules", is_flag=True, help="Print the alert rules for Prometheus; needs no server.")
@options.url
@options.queue
def metrics(once: bool, rules: bool, url: str | None, queue: str | None, **where: Any) -> None:
    """Answer scrapes at http://HOST:PORT/metrics until Ctrl-C or SIGTERM.

    Every scrape reads the server, and nothing is counted in between: any number of these may run.
    Beside it are /backlog, JSON for an autoscaler (docs/deploy.md), and /healthz, for probes.
    docs/alerts.md lists the metrics; ops/deploy/prometheus holds the alert rules on them. An address that
    other machines reach wants a token in AMN_METRICS_TOKEN (16 characters or more), which Prometheus sends
    as `authorization: {credentials_file: ...}`.
    """
    from prometheus_client import generate_latest

    from ops.metrics import pages, registry
    from ops.web.serve import serve

    if rules:
        shipped = resources.files("ops").joinpath("deploy", "prometheus", "amn-rules.yml")
        click.echo(shipped.read_text("utf-8"), nl=False)
        return
    settings = producer_settings(url, queue)
    if once:
        click.echo(generate_latest(registry(settings)), nl=False)
        return
    with _listening("AMN_METRICS_TOKEN", path="/metrics", **where) as (token, opened, beat):
        serve(pages(settings, token), opened, beat, connections_max=64, drain_s=3)
