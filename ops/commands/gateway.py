"""`amn gateway`: the queue for clients of the Open Inference Protocol, and for who has no client at all."""

from __future__ import annotations

import click

from ops import console
from ops.commands import options
from ops.settings import GATEWAY_PORT, listening_token
from producer.settings import ProducerSettings
from workers.pool.child import follow_parent
from workers.pulse import Pulse


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
