"""The few things that the page can change, each with a filter, a confirmed count, and a line in the log."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import redis
import structlog

from amn.output import plain
from ops.alerts.silences import SILENCE_MS_MAX, SILENCES_MAX, Silence, add_silence, end_silence
from ops.alerts.store import states
from ops.clock import server_now_ms, span
from ops.deadletters import DeadLetters, Letter
from ops.health.letters import newest
from ops.page.parts import kind_of
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import driver_errors

_LOG = structlog.get_logger("amn.page")
_PAGE, _TEXT_MAX, _WHO_MAX, _NUMBER_MAX = 100, 200, 64, 10**12
_LETTERS = ("reason", "kind", "older_than_s", "count_shown")
#: Answers to what was put back are waited for so long.
_ANSWERS_S = 3.0
#: A count may have changed by so much, or by this share, since somebody confirmed it.
_CHANGED, _CHANGED_SHARE = 2, 0.1
ActionFields = Mapping[str, Any]


class ActionRefused(Exception):
    """An action that is not done; the text says why, and `count` how many letters it would take now."""

    def __init__(self, text: str, count: int | None = None) -> None:
        super().__init__(text)
        self.count = count


class Actions:
    """Changes the service as `amn dlq` and `amn alerts` do."""

    def __init__(self, client: redis.Redis, settings: ProducerSettings) -> None:
        self._client, self._keys = client, Keys(settings.queue)
        self._letters, self._url = DeadLetters(client, settings), settings.url
        #: The names of the fields of each, which alone get into the log; and what does it.
        self._known: dict[str, tuple[tuple[str, ...], Callable[[ActionFields, str], str]]] = {
            "replay": (_LETTERS, self._put_back),
            "purge": (_LETTERS, self._purge),
            "silence": (("alert", "for_s", "reason"), self._silence),
            "end_silence": (("id",), self._end_silence),
        }

    def preview(self, name: str, fields: ActionFields) -> dict[str, Any]:
        """Says how many letters a replay or a purge would take; does nothing.

        Raises:
            ActionRefused: There is no such action, or a field cannot be used.
        """
        verbs = {"replay": "go back into the queue as requests", "purge": "are deleted for good"}
        if name not in verbs:
            raise ActionRefused(f"{name!r:.80} takes no letters; replay and purge do")
        with driver_errors(self._url):
            count = sum(1 for _ in self._chosen(fields))
        return {"count": count, "sentence": f"{_counted(count)}{_of(fields)}: they {verbs[name]}."}

    def do(self, name: str, fields: ActionFields, who: str) -> dict[str, Any]:
        """Does it, and says what was done.

        Args:
            who: Address of whoever asks, for the log.

        Raises:
            ActionRefused: There is no such action, a field cannot be used, or the count is another one now.
            ServerError: The server went away; the log says that some of it may have been done.
        """
        if name not in self._known:
            raise ActionRefused(f"no action is called {name!r:.80}; there are {', '.join(self._known)}")
        names, act = self._known[name]
        for field in fields.keys() - names:
            raise ActionRefused(f"{name} has no field {field!r:.80}; it has {', '.join(names)}")
        who = plain(who)[:_WHO_MAX]
        named = {f"of_{field}": plain(str(value))[:_TEXT_MAX] for field, value in fields.items()}
        log = _LOG.bind(action=name, who=who, **named)
        try:
            with driver_errors(self._url):
                said = act(fields, who)
        except ActionRefused:
            raise
        except Exception as error:
            log.warning("page_action_failed", error=plain(error)[:_TEXT_MAX])
            raise
        log.info("page_action", outcome=said)
        return {"sentence": said}

    def _chosen(self, fields: ActionFields) -> Iterator[Letter]:
        reason, kind, below = _text(fields, "reason"), _text(fields, "kind"), ""
        before_ms = server_now_ms(self._client) - _number(fields, "older_than_s") * 1000
        while page := newest(self._client, self._keys, _PAGE, below):
            below = page[-1].id
            for one in page:
                if reason in ("", one.reason) and kind in ("", kind_of(one)) and one.died_at_ms <= before_ms:
                    yield one

    def _confirmed(self, fields: ActionFields) -> list[str]:
        """The ids of the letters, oldest first, when they are about as many as somebody saw."""
        shown, ids = _number(fields, "count_shown"), [one.id for one in self._chosen(fields)]
        if abs(len(ids) - shown) > max(_CHANGED, _CHANGED_SHARE * shown):
            raise ActionRefused(
                f"{_counted(len(ids))} match now, and {shown} were confirmed: look again", len(ids)
            )
        return ids[::-1]

    def _put_back(self, fields: ActionFields, _: str) -> str:
        ids, client_id = self._confirmed(fields), f"page-{secrets.token_hex(6)}"
        ends, awaited = Counter[str](), set[str]()
        for one in self._letters.requeue(filter(None, map(self._letters.get, ids)), client_id):
            ends[one.status] += 1
            awaited |= {one.awaited} - {""}
        answers = self._letters.answers(client_id, awaited, _ANSWERS_S) if awaited else {}
        left = ", ".join(f"{count} {status}" for status, count in sorted(ends.items()) if status != "ok")
        said = f"{_counted(ends['ok'])} put back, {len(answers)} of them ended within {_ANSWERS_S:.0f} s"
        return f"{said}; left: {left}" if left else said

    def _purge(self, fields: ActionFields, _: str) -> str:
        return f"{_counted(self._letters.purge(self._confirmed(fields)))} deleted for good"

    def _silence(self, fields: ActionFields, who: str) -> str:
        reason, name = _text(fields, "reason"), _text(fields, "alert")
        for_ms = _number(fields, "for_s") * 1000
        alert = states(self._client, self._keys).get(name)
        if alert is None:
            raise ActionRefused(f"no alert is called {name!r}; it may have ended meanwhile")
        if not reason.strip() or not 60_000 <= for_ms <= SILENCE_MS_MAX:
            raise ActionRefused(f"a silence has a reason, and lasts a minute to {span(SILENCE_MS_MAX)}")
        now_ms = server_now_ms(self._client)
        made = Silence(
            until_ms=now_ms + for_ms, made_ms=now_ms, reason=reason, author=f"page, from {who}", alert=name
        )
        if not add_silence(self._client, self._keys, made):
            raise ActionRefused(f"{SILENCES_MAX} silences are in force; end some first")
        return f"{alert.rule} is silenced for {span(for_ms)} (silence {made.id})"

    def _end_silence(self, fields: ActionFields, _: str) -> str:
        name = _text(fields, "id")
        if not end_silence(self._client, self._keys, name):
            raise ActionRefused(f"no silence is called {name!r}; it may have ended by itself")
        return f"silence {name} has ended"


def _text(fields: ActionFields, name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str) or len(value) > _TEXT_MAX:
        raise ActionRefused(f"{name} must be a text of at most {_TEXT_MAX} characters")
    return plain(value)


def _number(fields: ActionFields, name: str) -> int:
    value = fields.get(name, 0)
    try:
        number = max(int(value), 0) if isinstance(value, int | str) else int("no")
        return number if number <= _NUMBER_MAX else int("no")
    except ValueError:
        said = f"{name} must be a whole number up to {_NUMBER_MAX:,}, and is {value!r:.80}"
        raise ActionRefused(said) from None


def _counted(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"


def _of(fields: ActionFields) -> str:
    names = (("reason", "with the reason"), ("kind", "of the worker kind"))
    found = [f" {words} {_text(fields, name)}" for name, words in names if fields.get(name)]
    older_s = _number(fields, "older_than_s")
    return "".join(found) + (f", older than {span(older_s * 1000)}" if older_s else "")
