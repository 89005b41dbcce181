"""`amn alerts`: what fires, what is silenced, what was sent; and the process that sends it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops import console
from ops.commands import options
from ops.errors import AlertRefused
from ops.settings import producer_settings
from producer.keys import Keys
from producer.transport.connection import connect, driver_errors
from workers.pool.child import follow_parent, tell_ready

if TYPE_CHECKING:
    import redis

    from ops.alerts import Alert

config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file of the sinks (docs/alerts.md). [env: AMN_ALERTS_FILE]",
)


@click.group(short_help="What fires, silences, and where it is sent.")
def alerts() -> None:
    """See what fires, hold it back for a while, and try out where it is sent.

    \b
    Examples:
      amn alerts list
      amn alerts silence --rule level --for 2h --reason "new encoder, see #12"
      amn alerts test pager --config alerts.toml
    """


class _Looking:
    """Holds a client for the length of a command."""

    def __init__(self, url: str | None, queue: str | None) -> None:
        self.settings = producer_settings(url, queue)
        self.keys = Keys(self.settings.queue)
        self.client: redis.Redis = connect(self.settings)
        self._errors = driver_errors(self.settings.url)

    def __enter__(self) -> _Looking:
        self._errors.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.close()
        self._errors.__exit__(*error)

    def now_ms(self) -> int:
        from ops.clock import server_now_ms

        return server_now_ms(self.client)

    def rules(self) -> list[str]:
        """Names of the rules that were judged last, and of the sender's own."""
        from ops.alerts.watch import RULES
        from ops.drift.memory import Memory

        return sorted({one.rule for one in Memory(self.client, self.keys).findings()} | set(RULES))

    def alert(self, name: str) -> Alert:
        """Returns the alert of this id, which may be shortened while it names one alert alone.

        Raises:
            AlertRefused: None, or several.
        """
        from ops.alerts.store import alerts as read

        found = [one for one in read(self.client, self.keys) if one.id.startswith(name)]
        if len(found) != 1:
            said = "no alert begins" if not found else f"{len(found)} alerts begin"
            raise AlertRefused(f"{said} with {name!r}; `amn alerts list` shows them")
        return found[0]


@alerts.command("list")
@options.as_json
@options.url
@options.queue
def list_alerts(as_json: bool, url: str | None, queue: str | None) -> None:
    """Lists firing, recovering and lately resolved alerts, silences, and the delivery."""
    from ops.alerts.views import listing, show_listing

    with _Looking(url, queue) as looking:
        found = listing(looking.client, looking.keys, looking.now_ms())
    if as_json:
        console.say_json(found, indent=2)
    else:
        show_listing(console.out(), found)


@alerts.command()
@click.argument("alert_id", metavar="ID")
@options.as_json
@options.url
@options.queue
def show(alert_id: str, as_json: bool, url: str | None, queue: str | None) -> None:
    """One alert with its numbers, its runbook and what was sent. ID may be shortened."""
    from ops.alerts.settings import AlertSettings
    from ops.alerts.views import detail, show_detail

    with _Looking(url, queue) as looking:
        alert = looking.alert(alert_id)
        settings = AlertSettings.from_environment()
        found = detail(looking.client, looking.keys, alert, settings, looking.now_ms())
    if as_json:
        console.say_json(found, indent=2)
    else:
        show_detail(console.out(), found)


def _span(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    from ops.alerts.silences import SILENCE_MS_MAX
    from ops.clock import parse_span, span

    try:
        length_ms = parse_span(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if length_ms > SILENCE_MS_MAX:
        raise click.BadParameter(f"{value} is longer than {span(SILENCE_MS_MAX)}.")
    return length_ms


@alerts.command()
@click.argument("alert_id", metavar="[ID]", required=False)
@click.option("--rule", default="", help="Every alert of this rule.")
@click.option("--model", default="", help="Of this model only.")
@click.option("--lane", default="", help="Of this lane only.")
@click.option("--for", "length_ms", metavar="TIME", required=True, callback=_span, help="90s, 30m, 2h or 3d.")
@click.option("--reason", required=True, help="Why nobody needs to hear of it.")
@click.option("--author", default=options.login_name, show_default="login name", help="Who decides.")
@options.url
@options.queue
def silence(
    alert_id: str | None,
    rule: str,
    model: str,
    lane: str,
    length_ms: int,
    reason: str,
    author: str,
    url: str | None,
    queue: str | None,
) -> None:
    """Hold back one alert, or those of a rule, model or lane; prints the id of the silence.

    They are judged and listed all the same. What was told already is still resolved; what goes on
    when the silence ends is told then.
    """
    from ops.alerts.silences import SILENCES_MAX, Silence, add_silence

    if bool(alert_id) == bool(rule or model or lane):
        raise click.UsageError("Give the ID of one alert, or some of --rule, --model and --lane.")
    if not reason.strip():
        raise click.BadParameter("it is empty.", param_hint="'--reason'")
    with _Looking(url, queue) as looking:
        if rule and rule not in (known := looking.rules()):
            console.say(f"note: no rule {rule!r} was judged here yet; known: {', '.join(known)}", err=True)
        now_ms = looking.now_ms()
        made = Silence.new(
            until_ms=now_ms + length_ms,
            made_ms=now_ms,
            reason=reason,
            author=author,
            alert=looking.alert(alert_id).id if alert_id else "",
            rule=rule,
            model=model,
            lane=lane,
        )
        if not add_silence(looking.client, looking.keys, made):
            raise AlertRefused(f"{SILENCES_MAX} silences are in force; end some with `amn alerts unsilence`")
    console.say(made.id)


@alerts.command()
@click.argument("silence_id", metavar="SILENCE")
@options.url
@options.queue
def unsilence(silence_id: str, url: str | None, queue: str | None) -> None:
    """End a silence now; its id is in `amn alerts list`."""
    from ops.alerts.silences import end_silence

    with _Looking(url, queue) as looking:
        if not end_silence(looking.client, looking.keys, silence_id):
            raise AlertRefused(f"no silence is called {silence_id!r}; `amn alerts list` shows them")


@alerts.command()
@click.argument("sink")
@config
@options.queue
@options.as_json
def test(sink: str, config: Path | None, queue: str | None, as_json: bool) -> None:
    """Send SINK a test alert, and its end; no server is needed. Exit code 1 when it does not accept."""
    from ops.alerts.config import load
    from ops.alerts.delivery import send_trial

    loaded = load(config)
    answers = send_trial(loaded.sink(sink), loaded.settings, queue or "main")
    if as_json:
        console.say_json({kind: asdict(answer) for kind, answer in answers.items()})
    else:
        for kind, answer in answers.items():
            console.say(f"{kind}: {answer.outcome} {answer.detail}".strip())
    if any(answer.outcome != "accepted" for answer in answers.values()):
        raise AlertRefused(f"{sink} did not accept the test")


@alerts.command()
@config
@click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info", show_default=True)
@options.url
@options.queue
def run(config: Path | None, log_level: str, url: str | None, queue: str | None) -> None:
    """Send alerts until Ctrl-C or SIGTERM. Of several of these one sends; the others stand by."""
    from ops.alerts.process import run as send
    from workers.logs import configure_logs
    from workers.pool.failures import last_words

    settings = producer_settings(url, queue)
    configure_logs(log_level)
    follow_parent()
    with last_words(settings, "sender"), driver_errors(settings.url):
        tell_ready()
        send(settings, config)
