"""`amn drift`: is the model still as good as it was, and since when not."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from amn.files import write_whole
from ops import console
from ops.commands import options
from ops.commands.drift import canary
from ops.commands.drift import tools as drift_tools
from ops.commands.drift.looking import looking
from ops.local.beside import unless_ignored
from producer.settings import ProducerSettings
from workers.pool.child import follow_parent
from workers.pulse import Pulse

strict = click.option(
    "--card-strict", is_flag=True, help="The card's sentence alone: drop over 0.03 in 24 h, no safeguards."
)
_model = click.option("--model", help="Model id. [default: the one that is judged now]")


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
@options.server
def status(card_strict: bool, as_json: bool, settings: ProducerSettings) -> None:
    """Shows what every rule says now; nothing is changed, and no judge has to run."""
    from ops.drift.show.views import show, status_json

    with looking(settings, card_strict=card_strict) as data:
        found, evaluated_at_ms = data.evaluate(), data.memory.evaluated_at_ms()
    if as_json:
        console.say_json(status_json(found, evaluated_at_ms), indent=2)
    else:
        show(console.out(), found, evaluated_at_ms)


@drift.command()
@strict
@options.server
def check(card_strict: bool, settings: ProducerSettings) -> None:
    """Judge once by hand, and tell the alerts; exit code 1 when a page fires.

    While a judge runs, it leads, and this only shows what it would say.
    """
    from ops.drift.loop import Judge
    from ops.drift.show.views import show

    with looking(settings, card_strict=card_strict) as data:
        by_hand = Judge(data.client, data.keys, data.settings, data.tell)
        try:
            found = by_hand.turn()
        finally:
            by_hand.resign()
        if found is None:
            console.say("another judge leads; it writes, this only looks", err=True)
            found = data.evaluate()
    show(console.out(), found, found.now_ms)
    if any(f.state == "firing" and f.severity == "page" for f in found.findings):
        raise click.exceptions.Exit(1)


@drift.command()
@strict
@options.log_level
@options.server
def judge(card_strict: bool, log_level: str, settings: ProducerSettings) -> None:
    """Judge once a minute until Ctrl-C or SIGTERM. Of several judges one leads, the others wait."""
    from ops.drift.loop import Judge
    from workers.logs import configure_logs
    from workers.pool.failures import last_words

    configure_logs(log_level)
    follow_parent()
    stopping = threading.Event()
    unless_ignored(lambda *_: stopping.set(), signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with last_words(settings, "judge"), looking(settings, card_strict=card_strict) as data:
        pulse = Pulse()
        pulse.ready()
        Judge(data.client, data.keys, data.settings, data.tell, settings.url).run(stopping, pulse)


@drift.command()
@_model
@click.option(
    "--hours",
    type=click.IntRange(0, 168),
    default=24,
    help="How much of the past belongs to the new baseline; 0 begins now.",
)
@click.option("--reason", required=True, help="Why what is now is as it should be; for the audit.")
@click.option("--who", default=options.login_name, show_default="login name", help="Who decides.")
@options.server
def rebaseline(model: str | None, hours: int, reason: str, who: str, settings: ProducerSettings) -> None:
    """Declare the present to be health. The judge takes it up within a minute, and writes it down.

    The baseline is never moved by itself. This is for a change that was meant: a new encoder, a new
    kind of documents. Everything that fires for this model ends with it.
    """
    from ops.clock import server_now_ms
    from ops.drift.state import Order
    from ops.health.beside import SILENT_MS

    with looking(settings) as data:
        known = {name: one.last_block for name, one in data.memory.state().models.items()}
        chosen = model or max(known, key=lambda name: known[name], default="")
        if chosen not in known:
            names = ", ".join(known) or "none"
            raise click.UsageError(f"the judge knows no model {chosen}; it knows: {names}")
        now_ms = server_now_ms(data.client)
        data.memory.order(Order(model=chosen, hours=hours, who=who, why=reason, at_ms=now_ms))
        waits = not 0 <= now_ms - data.memory.evaluated_at_ms() <= SILENT_MS
    console.say(f"ordered: baseline of {chosen} from the last {hours} h")
    if waits:
        console.say("no judge has looked for three minutes: start one (`amn drift judge`)", err=True)


@drift.command()
@options.as_json
@options.server
def audit(as_json: bool, settings: ProducerSettings) -> None:
    """Baselines learned, frozen and reset: when, by whom, why; newest first."""
    from ops.drift.show.views import audit_table

    with looking(settings) as data:
        entries = data.memory.audit()
    console.answer(as_json, entries, lambda found: console.out().print(audit_table(found)), indent=2)


@drift.command()
@click.option("--out", type=options.FILE, default=Path("drift.html"))
@_model
@options.server
def report(out: Path, model: str | None, settings: ProducerSettings) -> None:
    """One page with the plots of the last 48 h: for whoever was woken up."""
    from ops.clock import server_now_ms
    from ops.commands.drift.sequences import of_last_day
    from ops.drift.show.report import page

    with looking(settings) as data:
        worst = of_last_day(data.client, data.keys, server_now_ms(data.client))
        text = page(data.keys, data.memory, data.evaluate(), worst, model)
    write_whole(out, text)
    console.say(str(out))


for command in (drift_tools.simulate, drift_tools.replay, canary.canary, canary.exemplars):
    drift.add_command(command)
