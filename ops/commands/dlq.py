"""`amn dlq`: dead letters are shown, put back, or thrown away."""

from __future__ import annotations

import itertools
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ops import console
from ops.clock import parse_span, server_now_ms, span
from ops.commands import options
from ops.deadletters import DeadLetter, DeadLetters, Requeued, described
from ops.errors import LettersLeft
from producer.messages import Answer, BatchReply, Failure, Reply
from producer.settings import ProducerSettings

_HEAD_BYTES, _LINE_BYTES = 128, 16
#: Why a letter stayed where it was.
_LEFT = {
    "gone": "not there any more",
    "full": "the queue is full",
    "refused": "the server takes no entry into this stream; `amn doctor` says why",
}


def _age_ms(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_span(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_reason = click.option("--reason", default="", metavar="CODE", help="Only letters with this reason.")
_chosen_letters = options.together(
    click.argument("ids", nargs=-1, metavar="[ID]..."),
    click.option("--all", "every", is_flag=True, help="All of them, or those that the next two leave."),
    _reason,
    click.option(
        "--older-than", "older_ms", callback=_age_ms, metavar="AGE", help="Only older ones: 90s, 15m, 2h, 7d."
    ),
)


@click.group(short_help="Dead letters: list, show, replay, purge.")
def dlq() -> None:
    """Requests that no worker could answer, kept with the reason (the newest 10,000).

    A request's end is final: when its client was told, a replay is answered to whoever replays it,
    under a new id. A letter that nobody could read goes back as it is, and its client is answered.

    \b
    Examples:
      amn dlq list --reason batch_breaking
      amn dlq replay --all
    """


@dlq.command("list")
@_reason
@click.option("--limit", type=click.IntRange(1), default=50, help="At most so many.")
@options.server
@options.as_json
def list_(reason: str, limit: int, settings: ProducerSettings, as_json: bool) -> None:
    """Show the newest dead letters, one a line."""
    with _opened(settings) as (letters, now_ms):
        total = len(letters)
        found = list(itertools.islice(letters.newest_first(reason), limit))
    if as_json:
        console.say_json({"total": total, "letters": [described(one, now_ms) for one in found]})
        return
    headers = ("id", "age>", "reason", "deliveries>", "sha1", "bytes>", "told", "lane", "client")
    table = console.DataTable(*headers)
    for one in found:
        told, lane, client = ("no", "yes")[one.told], None, None
        if one.request:
            lane, client = one.request.lane, one.request.reply_to
        age, size = span(now_ms - one.died_at_ms), len(one.payload)
        table.add_row(one.id, age, one.reason, one.deliveries, one.sha1[:10], size, told, lane, client)
    out = console.out()
    if found:
        out.print(table)
    out.print(f"{len(found)} of {total} dead letters")


@dlq.command()
@click.argument("letter_id", metavar="ID")
@options.server
@options.as_json
def show(letter_id: str, settings: ProducerSettings, as_json: bool) -> None:
    """Show one dead letter: reason, decoded request, head of the payload."""
    with _opened(settings) as (letters, now_ms):
        letter = _found(letters, letter_id)
    found, head = described(letter, now_ms), letter.payload[:_HEAD_BYTES]
    if as_json:
        console.say_json(found | {"head_hex": head.hex()})
        return
    if isinstance(found["request"], dict):
        found |= {f"request.{name}": value for name, value in found.pop("request").items()}
    out = console.out()
    out.print(console.DataTable(show_header=False).filled(found.items()))
    out.print(f"\nfirst {len(head)} of {len(letter.payload):,} payload bytes")
    for at in range(0, len(head), _LINE_BYTES):
        line = head[at : at + _LINE_BYTES]
        out.print(f"{at:06x}  {line.hex(' '):<47}  {re.sub(rb'[^ -~]', b'.', line).decode()}")


@dlq.command()
@_chosen_letters
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    help="Seconds to wait for the answers.",
)
@options.server
@options.as_json
def replay(wait_s: float, settings: ProducerSettings, as_json: bool, **choice: Any) -> None:
    """Put dead letters back into the queue, and say what became of each.

    Each letter is removed and its request appended in one step, within the queue's limits. Exit
    code 1 when one could not go back, or ended badly once more.

    \b
    Examples:
      amn dlq replay 1764000000000-0
      amn dlq replay --all --reason batch_breaking
    """
    client_id = f"dlq-{secrets.token_hex(6)}"
    with _opened(settings) as (letters, now_ms):
        done = letters.requeue(_choose(letters, now_ms, **choice)[::-1], client_id)
        awaited = {one.awaited for one in done if one.awaited}
        answers = letters.answers(client_id, awaited, wait_s)
    ends = [(one, _end(one, answers.get(one.awaited))) for one in done]
    if as_json:
        names = ("id", "status", "replayed_as", "end")
        rows = [(one.letter.id, one.status, one.awaited, end) for one, end in ends]
        console.say_json({"replayed": [dict(zip(names, row, strict=True)) for row in rows]})
    else:
        for one, end in ends:
            console.say(f"{one.letter.id}  {one.status}  {end}")
    left = Counter(end.split(":")[0] for one, end in ends if not _went_well(one, answers))
    if left:
        texts = ", ".join(f"{count} {end}" for end, count in left.items())
        raise LettersLeft(f"{left.total()} of {len(ends)} letters did not end well: {texts}")


@dlq.command()
@_chosen_letters
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.server
@options.as_json
def purge(yes: bool, settings: ProducerSettings, as_json: bool, **choice: Any) -> None:
    """Delete dead letters for good.

    \b
    Examples:
      amn dlq purge --older-than 7d
      amn dlq purge --all --reason undecodable --yes
    """
    with _opened(settings) as (letters, now_ms):
        ids = [one.id for one in _choose(letters, now_ms, **choice)]
        if ids and not yes:
            click.confirm(f"delete {len(ids)} of {len(letters)} dead letters for good?", abort=True, err=True)
        purged = letters.purge(ids)
    console.say_json({"purged": purged}) if as_json else console.say(f"{purged} deleted")


@contextmanager
def _opened(settings: ProducerSettings) -> Iterator[tuple[DeadLetters, int]]:
    """The dead letters, and the server's clock in epoch ms."""
    # A wait for answers blocks for up to a second.
    with options.client(settings, block_ms=1_000) as client:
        yield DeadLetters(client, settings), server_now_ms(client)


def _choose(
    letters: DeadLetters, now_ms: int, *, ids: tuple[str, ...], every: bool, reason: str, older_ms: int | None
) -> list[DeadLetter]:
    """The letters that were named, or chosen, newest first."""
    if bool(ids) == bool(every or reason or older_ms is not None):
        raise click.UsageError("name letters by id, or choose them with --all, --reason, --older-than")
    if ids:
        return [_found(letters, one) for one in ids[::-1]]
    found = letters.newest_first(reason)
    return [one for one in found if older_ms is None or now_ms - one.died_at_ms > older_ms]


def _found(letters: DeadLetters, letter_id: str) -> DeadLetter:
    if not re.fullmatch(r"\d+-\d+", letter_id):
        raise click.UsageError(f"{letter_id!r} is not the id of a letter; `amn dlq list` shows them")
    letter = letters.get(letter_id)
    if letter is None:
        raise click.ClickException(f"there is no dead letter {letter_id}; `amn dlq list` shows them")
    return letter


def _end(one: Requeued, answer: Answer | Failure | None) -> str:
    if isinstance(answer, Reply):
        return f"answered by {answer.model}, confidence {answer.confidence:.3f}"
    if isinstance(answer, BatchReply):
        return f"answered by {answer.model}, {len(answer)} contexts"
    if isinstance(answer, Failure):
        return f"failed with {answer.code}: {answer.message}"
    if one.status == "ok":
        return "no answer yet" if one.awaited else "its client will be answered"
    return f"left: {_LEFT.get(one.status, one.letter.unreadable)}"


def _went_well(one: Requeued, answers: dict[str, Answer | Failure]) -> bool:
    return one.status == "ok" and (not one.awaited or isinstance(answers.get(one.awaited), Answer))
