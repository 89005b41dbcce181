"""`amn dlq` and the script below it, on the fake server and on the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from echo import EchoWorker, failure
from numpy.typing import NDArray

from ops.app import run
from ops.deadletters import DeadLetters
from producer.errors import InferenceFailed
from producer.keys import Keys
from producer.messages import Failure, Reply, Request
from producer.protocol import wire
from producer.settings import ProducerSettings
from workers.engine.microbatch import assemble
from workers.engine.outcomes import dead
from workers.engine.queue import LeasedQueue
from workers.settings import QueueSettings, WorkerSettings

KEYS = Keys()
NOISE = b"\xc1" * 40


class Rig:
    """A queue on which requests die as they do under a worker."""

    def __init__(self, target: Any, contexts: NDArray[np.float32]) -> None:
        self.admin, self.url, self.contexts = target.admin, target.url, contexts
        self.settings = ProducerSettings(url=target.url)
        worker = WorkerSettings(
            kind="amn", producer=self.settings, queue=QueueSettings(block_ms=20, lease_ms=60_000)
        )
        self.queue = LeasedQueue(worker, KEYS.requests, "w")
        self.queue.ensure_group()
        self.worker = worker

    def die(self, *names: str, reason: str = "batch_breaking", **changes: Any) -> None:
        for i, name in enumerate(names):
            request = Request(id=name, reply_to="client", context=self.contexts[i], **changes)
            self.admin.xadd(KEYS.requests, {"request": wire.encode_request(request), "id": name})
        outcomes = []
        for entry in self.queue.lease():
            request = wire.decode_request(entry.fields[b"request"])
            outcomes.append(dead(entry, request, reason, "it cannot be"))
        assert set(self.queue.finish(outcomes)) == {b"ok"}

    def die_unread(self, payload: bytes) -> None:
        """As a worker ends what it cannot decode: it knows nobody to tell."""
        self.admin.xadd(KEYS.requests, {"request": payload})
        entries = self.queue.lease()
        assert self.queue.finish([dead(entry, None, "undecodable", "no map") for entry in entries]) == [b"ok"]

    def letters(self, **limits: int) -> DeadLetters:
        return DeadLetters(self.admin, ProducerSettings(url=self.url, **limits))

    def replies(self, client: str = "client") -> list[Reply | Failure]:
        return [wire.decode_reply(fields[b"reply"]) for _, fields in self.admin.xrange(KEYS.replies(client))]

    def stat(self, name: str) -> int:
        return int(self.admin.hget(KEYS.stats, name) or 0)

    def bytes_match(self) -> bool:
        """Whether the byte counters say what the streams hold."""
        for stream, counter in zip(KEYS.places, KEYS.counters, strict=True):
            held = sum(len(fields[b"request"]) for _, fields in self.admin.xrange(stream))
            if held != int(self.admin.get(counter) or 0):
                return False
        return True


@pytest.fixture
def rig(server: Any, contexts: Callable[..., NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("REDIS_URL", server.url)
    rig = Rig(server, contexts(8))
    yield rig
    rig.queue.close()


def amn(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(["dlq", *words])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_a_told_client_gets_no_second_answer_and_the_replayer_gets_it(rig: Any, capsys: Any) -> None:
    rig.die("a", "b", expires_at_ms=1.0)  # its deadline is long over: a replay has none
    assert [reply.code for reply in rig.replies()] == ["dead_lettered"] * 2
    with EchoWorker(rig.url) as worker:
        code, out, err = amn(capsys, "replay", "--all", "--json")
    assert code == 0, err
    rows = json.loads(out)["replayed"]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(row["end"].startswith("answered by") for row in rows)
    assert sorted(worker.seen) == sorted(row["replayed_as"] for row in rows)
    assert all(name.startswith("replay:") for name in worker.seen)
    assert len(rig.replies()) == 2  # what they were told at first, and nothing since
    assert not list(rig.admin.scan_iter(match=KEYS.replies_prefix.replace("{", "\\{") + "dlq-*"))
    assert (rig.admin.xlen(KEYS.dead), rig.stat("replayed")) == (0, 2)


def test_a_letter_that_nobody_could_read_goes_back_as_it_is_once_it_can_be_read(
    rig: Any, capsys: Any
) -> None:
    payload = wire.encode_request(Request(id="a", reply_to="client", context=rig.contexts[0]))
    rig.die_unread(payload)  # by a worker of a version that could not
    assert rig.replies() == []
    with EchoWorker(rig.url) as worker:
        code, out, _ = amn(capsys, "replay", "--all")
        assert code == 0
        assert "its client will be answered" in out
        stream = KEYS.replies("client")
        (read,) = rig.admin.xread({stream: "0"}, block=10_000)
    assert worker.seen == ["a"]
    assert wire.decode_reply(read[1][0][1][b"reply"]).id == "a"


def test_noise_stays_a_dead_letter_and_the_exit_code_says_so(rig: Any, capsys: Any) -> None:
    rig.die_unread(NOISE)
    code, out, err = amn(capsys, "replay", "--all", "--wait", "0")
    assert code == 1
    assert "unreadable" in out
    assert err.startswith("amn: 1 of 1 letters did not end well")
    assert (rig.admin.xlen(KEYS.dead), rig.stat("replayed")) == (1, 0)


def test_a_letter_that_fails_once_more_is_named(rig: Any, capsys: Any) -> None:
    rig.die("a")
    with EchoWorker(rig.url, lambda request: failure(request, InferenceFailed("still bad"))):
        code, out, err = amn(capsys, "replay", "--all")
    assert code == 1
    assert "failed with inference_failed: still bad" in out
    assert "1 of 1" in err


def test_two_replays_at_once_put_a_letter_back_once(rig: Any) -> None:
    rig.die("a", "b")
    letters = rig.letters()
    seen = list(letters.newest_first())
    first, second = letters.requeue(seen, "dlq-x"), letters.requeue(seen, "dlq-y")
    assert [one.status for one in first] == ["ok", "ok"]
    assert [one.status for one in second] == ["gone", "gone"]
    assert rig.admin.xlen(KEYS.requests) == 2
    assert rig.bytes_match()


def test_a_replay_keeps_to_the_limits_and_leaves_the_rest_dead(rig: Any) -> None:
    rig.die("a", "b", "c")
    done = rig.letters(entries_max=2).requeue(list(rig.letters().newest_first()), "dlq-x")
    assert [one.status for one in done] == ["ok", "ok", "full"]
    assert (rig.admin.xlen(KEYS.requests), rig.admin.xlen(KEYS.dead)) == (2, 1)
    size = int(rig.admin.get(KEYS.requests_bytes))
    done = rig.letters(bytes_max=size + 10).requeue(list(rig.letters().newest_first()), "dlq-x")
    assert [one.status for one in done] == ["full"]
    assert rig.bytes_match()


def test_a_replay_goes_back_to_its_level(rig: Any) -> None:
    rig.die("a", priority="high")
    assert [one.status for one in rig.letters().requeue(rig.letters().newest_first(), "dlq-x")] == ["ok"]
    assert [rig.admin.xlen(stream) for stream in KEYS.levels] == [1, 0, 0]
    assert rig.bytes_match()


def test_a_workers_finish_and_the_letters_agree_about_who_was_told(rig: Any) -> None:
    rig.die("a")
    rig.die_unread(NOISE)
    noise, told = rig.letters().newest_first()
    assert (noise.told, noise.request) == (False, None)
    assert told.told
    assert (told.request.id, told.reason, told.deliveries) == ("a", "batch_breaking", 1)
    assert told.source == KEYS.requests


def test_the_worker_reads_a_replay_like_any_request(rig: Any) -> None:
    rig.die("a", lane="code-api", expires_at_ms=1.0)
    rig.letters().requeue(rig.letters().newest_first(), "dlq-x")
    batch = assemble(rig.queue.lease(), rig.worker, 2e12, 0.0)
    (request,) = batch.requests
    assert (request.lane, request.reply_to, request.expires_at_ms) == ("code-api", "dlq-x", 0)
    assert np.array_equal(batch.contexts[0], rig.contexts[0])


def test_list_and_show_say_what_it_is(rig: Any, capsys: Any) -> None:
    rig.die("a", lane="code-api")
    rig.die_unread(NOISE)
    code, out, _ = amn(capsys, "list")
    assert code == 0
    assert "batch_breaking" in out
    assert "code-api" in out
    assert "2 of 2 dead letters" in out
    code, out, _ = amn(capsys, "list", "--reason", "undecodable", "--json")
    found = json.loads(out)
    assert (code, found["total"], len(found["letters"])) == (0, 2, 1)
    letter = found["letters"][0]
    code, out, _ = amn(capsys, "show", letter["id"], "--json")
    assert json.loads(out)["head_hex"] == NOISE.hex()
    assert json.loads(out)["request"].startswith("unreadable")
    told = next(one for one in rig.letters().newest_first() if one.told)
    code, out, _ = amn(capsys, "show", told.id)
    assert "request.lane" in out
    assert "batch_breaking" in out
    assert "first 128 of" in out


def test_purge_deletes_what_was_chosen_and_asks_before(rig: Any, capsys: Any, monkeypatch: Any) -> None:
    rig.die("a", "b")
    rig.die_unread(NOISE)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert amn(capsys, "purge", "--all")[0] == 130  # nobody said yes
    assert amn(capsys, "purge", "--older-than", "1h", "--yes")[1] == "0 deleted\n"
    assert amn(capsys, "purge", "--reason", "undecodable", "--yes", "--json")[1] == '{"purged": 1}\n'
    (first, _) = rig.letters().newest_first()
    assert amn(capsys, "purge", first.id, "--yes")[1] == "1 deleted\n"
    assert rig.admin.xlen(KEYS.dead) == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("replay",), "--all"),
        (("replay", "--all", "1-0"), "--all"),
        (("purge",), "--older-than"),
        (("purge", "--older-than", "soon"), "'soon'"),
        (("show", "newest"), "'newest'"),
        (("show", "1-0"), "no dead letter 1-0"),
    ],
)
def test_wrong_words_are_one_line(rig: Any, capsys: Any, words: tuple[str, ...], what: str) -> None:
    code, out, err = amn(capsys, *words)
    assert code in (1, 2)
    assert out == ""
    assert what in err
    assert err.count("\n") == 1


def test_pages_cover_every_letter_once(rig: Any) -> None:
    for i in range(450):
        rig.admin.xadd(KEYS.dead, {"reason": "undecodable" if i % 3 else "worker_died", "request": b"x"})
    letters = rig.letters()
    assert len({one.id for one in letters.newest_first()}) == 450
    assert len(list(letters.newest_first("worker_died"))) == 150
    assert letters.purge([one.id for one in letters.newest_first()]) == 450


def test_a_letter_with_a_batch_is_shown(rig: Any, capsys: Any) -> None:
    batch = Request(id="many", reply_to="client", context=np.stack([rig.contexts[0], rig.contexts[1]]))
    rig.admin.xadd(KEYS.requests, {"request": wire.encode_request(batch), "id": "many"})
    entries = rig.queue.lease()
    request = wire.decode_request(entries[0].fields[b"request"], batches=True)
    assert rig.queue.finish([dead(entries[0], request, "batch_breaking", "it cannot be")]) == [b"ok"]
    code, out, err = amn(capsys, "list", "--json")
    assert code == 0, err
    [letter] = json.loads(out)["letters"]
    assert letter["request"]["context_norms"] == [[1.0] * 5] * 2
    code, out, err = amn(capsys, "show", letter["id"])
    assert code == 0, err
    assert "(2, 5, 768)" in out
