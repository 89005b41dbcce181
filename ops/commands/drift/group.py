"""`amn drift`: is the model still as good as it was, and since when not."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

import click

from amn.files import write_whole
from ops import console
from ops.commands import options
from ops.commands.drift import canary
from ops.commands.drift import tools as drift_tools
from ops.commands.drift.looking import Looking
from ops.drift.settings import JudgeSettings
from ops.local.child import follow_parent, tell_ready, unless_ignored
from ops.settings import producer_settings

strict = click.option(
    "--card-strict", is_flag=True, help="The card's sentence alone: drop over 0.03 in 24 h, no safeguards."
)


@click.group(short_help="The drift judgement: status, report, replay.")
def drift() -> None:
    """Judge what the shadow worker measured: the OOD delta of 24 h, and everything beside it.

    \b
    Examples:
      amn drift status
      amn drift report --out report.html
      amn drift simulate --drop 0.03 --rate 100 --sample 0.01
    """


@drift.command()
@strict
@options.as_json
@options.url
@options.queue
def status(card_strict: bool, as_json: bool, url: str | None, queue: str | None) -> None:
    """Shows what every rule says now; nothing is changed, and no judge has to run."""
    from ops.drift.show.views import show, status_json

    settings = producer_settings(url, queue)
    with Looking(settings, JudgeSettings(card_strict=card_strict)) as looking:
        found, evaluated_at_ms = looking.evaluate(), looking.memory.evaluated_at_ms()
    if as_json:
        console.say_json(status_json(found, evaluated_at_ms), indent=2)
    else:
        show(console.out(), found, evaluated_at_ms)


@drift.command()
@strict
@options.url
@options.queue
def check(card_strict: bool, url: str | None, queue: str | None) -> None:
    """Judge once by hand, and tell the alerts; exit code 1 when a page fires.

    While a judge runs, it leads, and this only shows what it would say.
    """
    from ops.drift.loop import Judge
    from ops.drift.show.views import show

    settings = producer_settings(url, queue)
    chosen = JudgeSettings(card_strict=card_strict)
    with Looking(settings, chosen) as looking:
        judge = Judge(looking.client, looking.keys, chosen, looking.alert())
        try:
            found = judge.turn()
        finally:
            judge.resign()
        if found is None:
            console.say("another judge leads; it writes, this only looks", err=True)
            found = looking.evaluate()
    show(console.out(), found, found.now_ms)
    if any(f.state == "firing" and f.severity == "page" for f in found.findings):
        raise click.exceptions.Exit(1)


@drift.command()
@strict
@click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info", show_default=True)
@options.url
@options.queue
def judge(card_strict: bool, log_level: str, url: str | None, queue: str | None) -> None:
    """Judge once a minute until Ctrl-C or SIGTERM. Of several judges one leads, the others wait."""
    from ops.drift.loop import Judge
    from workers.logs import configure_logs
    from workers.pool.failures import last_words

    settings = producer_settings(url, queue)
    configure_logs(log_level)
    follow_parent()
    stopping = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        stopping.set()

    unless_ignored(on_signal, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    chosen = JudgeSettings(card_strict=card_strict)
    with last_words(settings, "judge"), Looking(settings, chosen) as looking:
        tell_ready()
        Judge(looking.client, looking.keys, chosen, looking.alert(), settings.url).run(stopping)


@drift.command()
@click.option("--model", help="Model id. [default: the one that is judged now]")
@click.option(
    "--hours",
    type=click.IntRange(0, 168),
    default=24,
    show_default=True,
    help="How much of the past belongs to the new baseline; 0 begins now.",
)
@click.option("--reason", required=True, help="Why what is now is as it should be; for the audit.")
@click.option("--who", default=options.login_name, show_default="login name", help="Who decides.")
@options.url
@options.queue
def rebaseline(
    model: str | None, hours: int, reason: str, who: str, url: str | None, queue: str | None
) -> None:
    """Declare the present to be health. The judge takes it up within a minute, and writes it down.

    The baseline is never moved by itself. This is for a change that was meant: a new encoder, a new
    kind of documents. Everything that fires for this model ends with it.
    """
    from ops.clock import server_now_ms
    from ops.drift.memory import Order

    with Looking(producer_settings(url, queue), JudgeSettings()) as looking:
        models = sorted(looking.memory.state().models.items(), key=lambda item: item[1].last_block)
        chosen = model or (models[-1][0] if models else None)
        if chosen is None or chosen not in dict(models):
            known = ", ".join(name for name, _ in models) or "none"
            raise click.UsageError(f"the judge knows no model {chosen or ''}; it knows: {known}")
        now_ms = server_now_ms(looking.client)
        looking.memory.order(Order(model=chosen, hours=hours, who=who, why=reason, at_ms=now_ms))
        waits = not 0 <= now_ms - looking.memory.evaluated_at_ms() <= 180_000
    console.say(f"ordered: baseline of {chosen} from the last {hours} h")
    if waits:
        console.say("no judge has looked for three minutes: start one (`amn drift judge`)", err=True)


@drift.command()
@options.as_json
@options.url
@options.queue
def audit(as_json: bool, url: str | None, queue: str | None) -> None:
    """Baselines learned, frozen and reset: when, by whom, why; newest first."""
    from ops.drift.show.views import show_audit

    with Looking(producer_settings(url, queue), JudgeSettings()) as looking:
        entries = looking.memory.audit()
    if as_json:
        console.say_json(entries, indent=2)
    else:
        show_audit(console.out(), entries)


@drift.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("drift.html"))
@click.option("--model", help="Model id. [default: the one that is judged now]")
@options.url
@options.queue
def report(out: Path, model: str | None, url: str | None, queue: str | None) -> None:
    """One page with the plots of the last 48 h: for whoever was woken up."""
    from ops.drift.show.report import page

    settings = producer_settings(url, queue)
    with Looking(settings, JudgeSettings()) as looking:
        text = page(looking.keys, looking.memory, looking.evaluate(), looking.worst(), model)
    write_whole(out, text)
    console.say(str(out))


drift.add_command(drift_tools.simulate)
drift.add_command(drift_tools.replay)
drift.add_command(canary.canary)
drift.add_command(canary.exemplars)
