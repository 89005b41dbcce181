"""`amn metrics`: what Prometheus scrapes."""

from __future__ import annotations

import http.client
import signal
import threading
from importlib import resources

import click

from ops import console
from ops.commands import options
from ops.errors import ServerFailed
from ops.local.beside import unless_ignored
from ops.settings import listening_token, producer_settings
from workers.pool.child import follow_parent
from workers.pulse import Pulse

#: Pause between two looks whether this process answers, and the longest wait for that.
_PROBE_S, _ANSWER_S_MAX = 1.0, 1.0


def _answers(host: str, port: int) -> bool:
    """True if a probe of our own is answered."""
    asked = http.client.HTTPConnection("::1" if host == "::" else host, port, timeout=_ANSWER_S_MAX)
    try:
        asked.request("GET", "/healthz")
        return asked.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


@click.command(short_help="Metrics for Prometheus.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", "-p", type=click.IntRange(0, 65_535), default=9464, show_default=True)
@click.option("--once", is_flag=True, help="Print them once instead.")
@click.option("--rules", is_flag=True, help="Print the alert rules for Prometheus; needs no server.")
@click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info", show_default=True)
@options.url
@options.queue
def metrics(
    host: str, port: int, once: bool, rules: bool, log_level: str, url: str | None, queue: str | None
) -> None:
    """Answer scrapes at http://HOST:PORT/metrics until Ctrl-C or SIGTERM.

    Every scrape reads the server, and nothing is counted in between: any number of these may run.
    Beside it are /backlog, JSON for an autoscaler (docs/deploy.md), and /healthz, for probes.
    docs/alerts.md lists the metrics; ops/deploy/prometheus holds the alert rules on them. An address that
    other machines reach wants a token in AMN_METRICS_TOKEN (16 characters or more), which Prometheus sends
    as `authorization: {credentials_file: ...}`.
    """
    from prometheus_client import generate_latest

    from ops.metrics import registry, serve
    from workers.logs import configure_logs

    if rules:
        shipped = resources.files("ops").joinpath("deploy", "prometheus", "amn-rules.yml")
        click.echo(shipped.read_text("utf-8"), nl=False)
        return
    settings = producer_settings(url, queue)
    if once:
        click.echo(generate_latest(registry(settings)), nl=False)
        return
    configure_logs(log_level)
    token = listening_token("AMN_METRICS_TOKEN", host)
    follow_parent()
    stopping = threading.Event()
    unless_ignored(lambda *_: stopping.set(), signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    try:
        server, thread = serve(settings, host, port, token)
    except OSError as error:
        raise ServerFailed(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from error
    console.say(f"http://{host}:{server.server_port}/metrics", err=True)
    pulse = Pulse()
    pulse.ready()
    while not stopping.wait(_PROBE_S):
        if _answers(host, server.server_port):
            pulse.beat()
    pulse.close()
    server.shutdown()
    server.server_close()
    thread.join()
