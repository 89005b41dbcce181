"""`amn drift`: is the model still as good as it was, and since when not."""

from __future__ import annotations

import getpass
import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ops import console
from ops.child import follow_parent
from ops.commands import canary, options
from ops.drift.settings import JudgeSettings
from ops.settings import producer_settings
from producer.connection import connect, driver_errors
from producer.keys import Keys
from producer.settings import ProducerSettings

if TYPE_CHECKING:  # imported by the commands that need them: `amn --help` is not to wait
    from ops.drift.findings import Finding
    from ops.drift.loop import Alert, Look
    from workers.exemplars import Exemplar

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
    """What every rule says now; nothing is changed, and no judge has to run."""
    from ops.drift.views import show, status_json

    settings = producer_settings(url, queue)
    with _Looking(settings, JudgeSettings(card_strict=card_strict)) as looking:
        found, evaluated_at_ms = looking.look(), looking.memory.evaluated_at_ms()
    if as_json:
        click.echo(json.dumps(status_json(found, evaluated_at_ms), indent=2))
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
    from ops.drift.views import show

    settings = producer_settings(url, queue)
    chosen = JudgeSettings(card_strict=card_strict)
    with _Looking(settings, chosen) as looking:
        judge = Judge(looking.client, looking.keys, chosen, looking.alert())
        try:
            found = judge.turn()
        finally:
            judge.resign()
        if found is None:
            click.echo("another judge leads; it writes, this only looks", err=True)
            found = looking.look()
    show(console.out(), found, found.commit.now_ms)
    if any(f.state == "firing" and f.severity == "page" for f in found.commit.findings):
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

    settings = producer_settings(url, queue)
    configure_logs(log_level)
    follow_parent()
    stopping = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    chosen = JudgeSettings(card_strict=card_strict)
    with _Looking(settings, chosen) as looking:
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
@click.option("--who", default=getpass.getuser, show_default="login name", help="Who decides.")
@options.url
@options.queue
def rebaseline(
    model: str | None, hours: int, reason: str, who: str, url: str | None, queue: str | None
) -> None:
    """Declare the present to be health. The judge takes it up within a minute, and writes it down.

    The baseline is never moved by itself. This is for a change that was meant: a new encoder, a new
    kind of documents. Everything that fires for this model ends with it.
    """
    from ops.drift.memory import Order
    from ops.drift.store import server_now_ms

    with _Looking(producer_settings(url, queue), JudgeSettings()) as looking:
        models = sorted(looking.memory.state().models.items(), key=lambda item: item[1].last_block)
        chosen = model or (models[-1][0] if models else None)
        if chosen is None or chosen not in dict(models):
            known = ", ".join(name for name, _ in models) or "none"
            raise click.UsageError(f"the judge knows no model {chosen or ''}; it knows: {known}")
        now_ms = server_now_ms(looking.client)
        looking.memory.order(Order(model=chosen, hours=hours, who=who, why=reason, at_ms=now_ms))
        waits = now_ms - looking.memory.evaluated_at_ms() > 180_000
    click.echo(f"ordered: baseline of {chosen} from the last {hours} h")
    if waits:
        click.echo("no judge has looked for three minutes: start one (`amn drift judge`)", err=True)


@drift.command()
@options.as_json
@options.url
@options.queue
def audit(as_json: bool, url: str | None, queue: str | None) -> None:
    """Baselines learned, frozen and reset: when, by whom, why; newest first."""
    from ops.drift.views import show_audit

    with _Looking(producer_settings(url, queue), JudgeSettings()) as looking:
        entries = looking.memory.audit()
    if as_json:
        click.echo(json.dumps(entries, indent=2))
    else:
        show_audit(console.out(), entries)


@drift.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("drift.html"))
@click.option("--model", help="Model id. [default: the one that is judged now]")
@options.url
@options.queue
def report(out: Path, model: str | None, url: str | None, queue: str | None) -> None:
    """One page with the plots of the last 48 h: for whoever was woken up."""
    from ops.drift.report import page

    settings = producer_settings(url, queue)
    with _Looking(settings, JudgeSettings()) as looking:
        text = page(looking.keys, looking.memory, looking.look(), looking.worst(), model)
    out.write_text(text, "utf-8")
    click.echo(str(out))


@drift.command()
@click.option("--drop", "drops", type=float, multiple=True, default=(0.03,), show_default=True)
@click.option("--rate", "rates", type=float, multiple=True, default=(100.0,), show_default=True)
@click.option("--sample", type=click.FloatRange(0.0001, 1), default=0.01, show_default=True)
@click.option("--ood-share", type=click.FloatRange(0.001, 0.999), default=0.1, show_default=True)
@click.option(
    "--days", type=click.IntRange(2), default=90, show_default=True, help="Healthy days a deployment."
)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Deployments.")
@click.option("--seed", default=0, show_default=True)
@options.as_json
def simulate(
    drops: tuple[float, ...],
    rates: tuple[float, ...],
    sample: float,
    ood_share: float,
    days: int,
    repeats: int,
    seed: int,
    as_json: bool,
) -> None:
    """False pages a year and time to a page, on made-up traffic; the card's bare rule beside ours.

    The traffic has neighbours that are alike, a daily rhythm, weekends, a slow wander of both means
    and of the lanes' shares, and truths that never come. --drop and --rate can be repeated.
    """
    from ops.drift.simulate import Healthy, run
    from ops.drift.synthetic import Scenario
    from ops.drift.views import show_simulation

    rows: list[dict[str, Any]] = []
    for rate in rates:
        scenario = Scenario(rate_per_s=rate, sample=sample, ood_share=ood_share)
        healthy = Healthy(days=days, repeats=repeats, seed=seed)
        rows += [one.to_json() for one in run(scenario, drops, healthy, JudgeSettings())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        show_simulation(console.out(), rows)


@drift.command()
@click.option("--alert", "alert_id", help="Id of an alert whose exemplars were kept (`amn alerts list`).")
@click.option(
    "--exemplars",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An .npz with contexts (N, 5, 768), truths (N, 768), and perhaps lanes and slices. "
    "[default: the shipped sample]",
)
@click.option("--model", type=click.Path(path_type=Path), help="Folder. [default: the production model]")
@click.option("--against", type=click.Path(path_type=Path), help="Folder. [default: the fallback]")
@options.as_json
@options.artifacts
@options.url
@options.queue
def replay(
    alert_id: str | None,
    exemplars: Path | None,
    model: Path | None,
    against: Path | None,
    as_json: bool,
    artifacts: Path | None,
    url: str | None,
    queue: str | None,
) -> None:
    """Score the same sequences with two models, and compare pair by pair.

    Because the items are the same, a difference of 0.01 shows in a few hundred of them.
    """
    from amn.predictor import Predictor
    from ops.drift.replay import Sequences, cosines, differences
    from ops.drift.views import replay_json, show_replay
    from ops.sample import Sample
    from ops.settings import artifacts_folder, sample_path

    root = artifacts_folder(artifacts)
    if alert_id:
        from ops.drift.kept import sequences_of

        with _Looking(producer_settings(url, queue), JudgeSettings()) as looking:
            chosen = sequences_of(looking.client, looking.keys, alert_id)
    elif exemplars:
        chosen = Sequences.load(exemplars)
    else:
        chosen = Sequences.of_sample(Sample.load(sample_path(None)))
    one = Predictor.open(model or root / "production_model")
    other = Predictor.open(against or root / "fallback_accuracy")
    found = differences(cosines(one, chosen), cosines(other, chosen), chosen)
    if as_json:
        click.echo(json.dumps(replay_json(one.model_id, other.model_id, found), indent=2))
    else:
        show_replay(console.out(), one.model_id, other.model_id, found)


drift.add_command(canary.canary)
drift.add_command(canary.exemplars)


class _Looking:
    """A client and the judge's memory, for the length of a command."""

    def __init__(self, settings: ProducerSettings, judging: JudgeSettings) -> None:
        from ops.drift.memory import Memory

        self.keys = Keys(settings.queue)
        self.client = connect(settings)
        self.memory = Memory(self.client, self.keys)
        self._settings, self._judging = settings, judging
        self._errors = driver_errors(settings.url)

    def __enter__(self) -> _Looking:
        self._errors.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.close()
        self._errors.__exit__(*error)

    def look(self) -> Look:
        """Evaluates without writing."""
        from ops.drift.loop import look

        return look(self.client, self.keys, self.memory, self._judging)

    def worst(self) -> list[Exemplar]:
        """The exemplars of the last 24 h."""
        from ops.drift.kept import of_last_day
        from ops.drift.store import server_now_ms

        return of_last_day(self.client, self.keys, server_now_ms(self.client))

    def alert(self) -> Alert:
        """Hands findings to the alerts, under the judge's fence."""
        from ops.alerts import apply
        from ops.drift.kept import keep

        def tell(findings: Sequence[Finding], now_ms: int, fence: int) -> None:
            changes = apply(self.client, self.keys, findings, now_ms=now_ms, fence=fence)
            keep(self.client, self.keys, changes, now_ms)

        return tell
