"""`amn dlq`: dead letters are shown, put back, or thrown away."""

from __future__ import annotations

import itertools
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import click
import numpy as np

from ops import console
from ops.commands import options
from ops.deadletters import DeadLetter, DeadLetters, Requeued
from ops.errors import LettersLeft
from ops.settings import producer_settings
from producer.messages import Answer, BatchReply, Failure, Reply
from producer.transport.clock import time_ms

_HEAD_BYTES = 128
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """A span such as 90s, 15m, 12h or 7d, in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not an age; write for example 90s, 15m, 12h or 7d")
    return float(found[1]) * _UNITS_S[found[2]]


_reason = click.option("--reason", default="", metavar="CODE", help="Only letters with this reason.")
_older = click.option(
    "--older-than", "older_s", callback=_seconds, metavar="AGE", help="Only older ones: 90s, 15m, 12h, 7d."
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
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@options.url
@options.queue
@options.as_json
def list_(reason: str, limit: int, url: str | None, queue: str | None, as_json: bool) -> None:
    """Show the newest dead letters, one a line.

    \b
    Examples:
      amn dlq list
      amn dlq list --reason batch_breaking --limit 500 --json
    """
    with _opened(url, queue) as (letters, now_ms):
        total = len(letters)
        found = list(itertools.islice(letters.newest_first(reason), limit))
    if as_json:
        console.say_json({"total": total, "letters": [_plain(one, now_ms) for one in found]})
        return
    columns = ("id", "age>", "reason", "deliveries>", "sha1", "bytes>", "told", "lane", "client")
    table = console.DataTable(*columns)
    for one in found:
        sender = (one.request.lane, one.request.reply_to) if one.request else (None, None)
        size, told = len(one.payload), "yes" if one.told else "no"
        age = _age(one, now_ms)
        table.add_row(one.id, age, one.reason, one.deliveries, one.sha1[:10], size, told, *sender)
    out = console.out()
    if found:
        out.print(table)
    out.print(f"{len(found)} of {total} dead letters")


@dlq.command()
@click.argument("letter_id", metavar="ID")
@options.url
@options.queue
@options.as_json
def show(letter_id: str, url: str | None, queue: str | None, as_json: bool) -> None:
    """Show one dead letter: reason, decoded request, head of the payload.

    \b
    Example:
      amn dlq show 1764000000000-0
    """
    with _opened(url, queue) as (letters, now_ms):
        letter = _found(letters, letter_id)
    if as_json:
        head = {"head_hex": letter.payload[:_HEAD_BYTES].hex()}
        console.say_json(_plain(letter, now_ms) | head)
        return
    out = console.out()
    table = console.DataTable(show_header=False)
    for name, value in _plain(letter, now_ms).items():
        if name == "request" and isinstance(value, dict):
            for field, inner in value.items():
                table.add_row(f"request.{field}", inner)
        else:
            table.add_row(name, value)
    out.print(table)
    out.print(f"\nfirst {min(_HEAD_BYTES, len(letter.payload))} of {len(letter.payload):,} payload bytes")
    out.print(_hex(letter.payload[:_HEAD_BYTES]))


@dlq.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All of them, or all with --reason.")
@_reason
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0, 86_400), default=30.0, show_default=True,
    help="Seconds to wait for the answers.",
)  # fmt: skip
@options.url
@options.queue
@options.as_json
def replay(
    ids: tuple[str, ...],
    every: bool,
    reason: str,
    wait_s: float,
    url: str | None,
    queue: str | None,
    as_json: bool,
) -> None:
    """Put dead letters back into the queue, and say what became of each.

    Each letter is removed and its request appended in one step, within the queue's limits. Exit
    code 1 when one could not go back, or ended badly once more.

    \b
    Examples:
      amn dlq replay 1764000000000-0
      amn dlq replay --all --reason batch_breaking
    """
    if bool(ids) == every:
        raise click.UsageError("name letters by id, or say --all")
    client_id = f"dlq-{secrets.token_hex(6)}"
    with _opened(url, queue) as (letters, _):
        chosen = (_found(letters, one) for one in ids) if ids else list(letters.newest_first(reason))[::-1]
        done = letters.requeue(chosen, client_id)
        awaited = {one.awaited for one in done if one.awaited}
        answers = letters.answers(client_id, awaited, wait_s)
    ends = [(one, _end(one, answers.get(one.awaited))) for one in done]
    if as_json:
        rows = [
            {"id": one.letter.id, "status": one.status, "replayed_as": one.awaited, "end": end}
            for one, end in ends
        ]
        console.say_json({"replayed": rows})
    else:
        for one, end in ends:
            console.say(f"{one.letter.id}  {one.status}  {end}")
    left = Counter(end.split(":")[0] for one, end in ends if not _went_well(one, answers))
    if left:
        texts = ", ".join(f"{count} {end}" for end, count in left.items())
        raise LettersLeft(f"{left.total()} of {len(ends)} letters did not end well: {texts}")


@dlq.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All of them, or what --reason and --older-than leave.")
@_reason
@_older
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.url
@options.queue
@options.as_json
def purge(
    ids: tuple[str, ...], every: bool, reason: str, older_s: float | None, yes: bool,
    url: str | None, queue: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Delete dead letters for good.

    \b
    Examples:
      amn dlq purge --older-than 7d
      amn dlq purge --all --reason undecodable --yes
    """
    if bool(ids) == bool(every or reason or older_s is not None):
        raise click.UsageError("name letters by id, or choose them with --all, --reason, --older-than")
    with _opened(url, queue) as (letters, now_ms):
        chosen = list(ids) or [
            one.id
            for one in letters.newest_first(reason)
            if older_s is None or now_ms - one.died_at_ms > older_s * 1000
        ]
        if chosen and not yes:
            click.confirm(
                f"delete {len(chosen)} of {len(letters)} dead letters for good?", abort=True, err=True
            )
        purged = letters.purge(chosen)
    console.say_json({"purged": purged}) if as_json else console.say(f"{purged} deleted")


@contextmanager
def _opened(url: str | None, queue: str | None) -> Iterator[tuple[DeadLetters, int]]:
    """The dead letters, and the server's clock in epoch ms."""
    settings = producer_settings(url, queue)
    # A wait for answers blocks for up to a second.
    with options.client(settings, block_ms=1_000) as client:
        yield DeadLetters(client, settings), int(time_ms(client.time()))


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
    texts = {
        "gone": "not there any more",
        "full": "the queue is full",
        "refused": "the server takes no entry into this stream; `amn doctor` says why",
        "unreadable": one.letter.unreadable,
    }
    return f"left: {texts[one.status]}"


def _went_well(one: Requeued, answers: dict[str, Answer | Failure]) -> bool:
    return one.status == "ok" and (not one.awaited or isinstance(answers.get(one.awaited), Answer))


def _plain(letter: DeadLetter, now_ms: int) -> dict[str, Any]:
    kept = ("reason", "message", "deliveries", "source", "entry", "sha1", "told")
    return {
        "id": letter.id,
        "age_s": round((now_ms - letter.died_at_ms) / 1000, 1),
        **{name: getattr(letter, name) for name in kept},
        "bytes": len(letter.payload),
        "request": _summary(letter) or f"unreadable: {letter.unreadable}",
    }


def _summary(letter: DeadLetter) -> dict[str, Any] | None:
    request = letter.request
    if request is None:
        return None
    names = [field.name for field in fields(request) if field.name != "context"]
    found: dict[str, Any] = {name: getattr(request, name) for name in names}
    context = request.context.astype(np.float64)
    found["context"] = f"{request.context.dtype} {request.context.shape}"
    found["context_finite"] = bool(np.isfinite(context).all())
    found["context_norms"] = np.linalg.norm(context, axis=-1).round(4).tolist()  # of a batch: five each
    return found


def _age(letter: DeadLetter, now_ms: int) -> str:
    age_s = max(now_ms - letter.died_at_ms, 0) / 1000
    for unit in ("d", "h", "m"):
        if age_s >= 2 * _UNITS_S[unit]:
            return f"{age_s / _UNITS_S[unit]:.0f} {unit}"
    return f"{age_s:.0f} s"


def _hex(payload: bytes) -> str:
    rows = []
    for at in range(0, len(payload), 16):
        part = payload[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        rows.append(f"{at:06x}  {part.hex(' '):<47}  {text}")
    return "\n".join(rows)
