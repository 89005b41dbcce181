"""Commands that answer HTTP: `amn dashboard` for people on call, `amn gateway` for clients of the queue."""

from __future__ import annotations

import click

from ops import console
from ops.commands import options
from ops.settings import GATEWAY_PORT, PAGE_PORT, listening_token
from producer.settings import ProducerSettings
from workers.pool.child import follow_parent
from workers.pulse import Pulse


@click.command(short_help="The page for on-call people.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", "-p", type=click.IntRange(0, 65_535), default=PAGE_PORT, show_default=True)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="A host name under which the page is asked for, such as that of a proxy; may be repeated.",
)
@click.option("--actions", is_flag=True, help="Let those who have the token replay, purge and silence.")
@click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info", show_default=True)
@options.server
def dashboard(
    host: str, port: int, names: tuple[str, ...], actions: bool, log_level: str, settings: ProducerSettings
) -> None:
    """Show the service at http://HOST:PORT until Ctrl-C or SIGTERM; it changes nothing without --actions.

    An address that other machines reach, and --actions, want a token in AMN_DASHBOARD_TOKEN (16 characters or
    more), or in the file that AMN_DASHBOARD_TOKEN_FILE names: the page asks for it once. docs/dashboard.md
    says what is on the page.
    """
    from ops.page.serve import PageSettings, serve
    from ops.web.serve import listen
    from workers.logs import configure_logs

    configure_logs(log_level)
    token = listening_token("AMN_DASHBOARD_TOKEN", host, needed=actions)
    page = PageSettings(token=token, names=names, actions=actions)
    with listen(host, port) as opened:
        follow_parent()
        pulse = Pulse()
        pulse.ready()
        console.say(f"http://{host}:{opened.getsockname()[1]}", err=True)
        serve(page, settings, opened, pulse.beat)
        pulse.close()


@click.command(short_help="HTTP: the Open Inference Protocol v2.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", "-p", type=click.IntRange(0, 65_535), default=GATEWAY_PORT, show_default=True)
@click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info", show_default=True)
@options.server
def gateway(host: str, port: int, log_level: str, settings: ProducerSettings) -> None:
    """Answer HTTP at http://HOST:PORT until Ctrl-C or SIGTERM, which drains.

    An address that other machines reach wants a token in AMN_GATEWAY_TOKEN (16 characters or more), or in
    the file that AMN_GATEWAY_TOKEN_FILE names. docs/gateway.md has the addresses, with examples.
    """
    from ops.gateway.serve import serve
    from ops.web.serve import listen
    from workers.logs import configure_logs

    configure_logs(log_level)
    token = listening_token("AMN_GATEWAY_TOKEN", host)
    with listen(host, port) as opened:
        follow_parent()
        pulse = Pulse()
        pulse.ready()
        console.say(f"http://{host}:{opened.getsockname()[1]}", err=True)
        serve(settings, opened, token, pulse.beat)
        pulse.close()
