"""Text that others wrote is data wherever it is shown: no markup, no orders to a terminal, strict JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rig import show_worker

from ops.alerts import AlertSettings, apply
from ops.app import run
from ops.clock import server_now_ms
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys
from producer.messages import Request
from producer.protocol import wire
from workers.shadow.exemplars import Exemplar, Exemplars

KEYS = Keys("main")
#: Markup that closes, opens and links; colour, a title, a hyperlink; right to left; a forged second line.
NASTY = (
    "[/x] [red] [link=http://e] [::1] :smile: \x1b[31mred \x1b]0;t\x07 \x1b]8;;http://e\x07 \x9b1m \u202e\nOK"
)
LISTINGS = [
    ["alerts", "list"],
    ["alerts", "show"],
    ["drift", "status"],
    ["drift", "audit"],
    ["drift", "exemplars"],
    ["dlq", "list"],
    ["dlq", "show"],
    ["jobs", "list"],
    ["doctor"],
    ["policy", "status"],
    ["bank", "status"],
    ["metrics", "--once"],
]


@pytest.fixture
def nasty(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A server full of such text; ids for the commands that want one."""
    server = make_server()
    client = server.client()
    now_ms = server_now_ms(client)
    monkeypatch.setenv("REDIS_URL", server.url)
    client.set(leader_key(KEYS), "1")
    common: dict[str, Any] = {"severity": "page", "state": "firing", "evaluations": 1}
    values = {"drop": float("nan"), NASTY: float("inf")}
    found = Finding(rule="level", model=NASTY, lane=NASTY, summary=NASTY, values=values, **common)
    changes = apply(client, KEYS, [found], now_ms=now_ms, fence=1, settings=AlertSettings())
    words = ["--rule", NASTY, "--for", "1h", "--reason", NASTY, "--author", "Ren\udce9"]
    assert run(["alerts", "silence", *words]) == 0
    audit = {"at_ms": now_ms, "what": NASTY, "model": NASTY, "who": NASTY, "why": NASTY, "n": float("nan")}
    client.rpush(KEYS.drift_prefix + "audit", json.dumps(audit))
    context = np.full((5, 768), np.nan, np.float32)
    request = Request(id=NASTY, reply_to=NASTY, context=context, domain=NASTY, sequence=NASTY)
    fields = {"reason": NASTY, "message": NASTY, "deliveries": 6, "source": KEYS.requests, "entry": "1-0"}
    letter = client.xadd(KEYS.dead, {**fields, "sha1": NASTY, "request": wire.encode_request(request)})
    client.hset(KEYS.stats, f"failed:{NASTY}".encode() + b"\xff\xe9", 1)
    worker = {"kind": NASTY, "pid": 1, "finished": 1, "model": NASTY, "bank": b"\xff\xe9", "lease_ms": 10_000}
    show_worker(client, NASTY, worker)
    client.pexpire(KEYS.worker(NASTY), 30_000)
    half = np.zeros((7, 768), np.float16)
    numbers = {"cosine": 0.1, "fallback": float("nan"), "ood": None, "minute": now_ms // 60_000}
    one = Exemplar(id="a", kind="worst", lane=NASTY, slice="id", model=NASTY, key=NASTY, rows=half, **numbers)
    Exemplars(client, KEYS).offer([one])
    return {"alerts": changes[0].alert.id, "dlq": letter.decode()}


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@pytest.mark.parametrize("words", LISTINGS, ids=" ".join)
def test_every_listing_shows_nasty_text_as_it_is(
    words: list[str], nasty: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, nasty[words[0]]] if words[-1] == "show" else words
    run(words)
    shown = capsys.readouterr()
    assert words[0] == "metrics" or not set("\x1b\x07\x9b\u202e") & set(shown.out + shown.err)
    assert "Error" not in shown.err  # a check of the doctor may fail, the command may not
    assert "OK" not in shown.out.splitlines()
    if words[0] in ("alerts", "drift", "dlq") and words[1] != "status":
        assert {"[/x]", "[red]", "[::1]", ":smile:", "\\x1b[31mred"} <= set(shown.out.split())
    if words[0] == "metrics":
        return
    run([*words, "--json"])
    printed = capsys.readouterr().out
    assert printed.isascii()
    json.loads(printed, parse_constant=refuse)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("words", [["alerts", "list"], ["drift", "audit"], ["dlq", "list"]], ids=" ".join)
def test_a_stream_that_lacks_a_character_gets_an_escape(
    words: list[str], encoding: str, nasty: dict[str, str]
) -> None:
    around = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = amn(words, env={**os.environ, **around}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


@pytest.mark.parametrize(
    ("closed", "words"),
    [("<&-", "doctor"), (">&-", "alerts list"), ("2>&-", "doctor"), ("<&- >&- 2>&-", "alerts list --json")],
)
def test_closed_streams_are_no_error(closed: str, words: str, nasty: dict[str, str], tmp_path: Path) -> None:
    script = f'"{sys.executable}" -P -m ops.cli {words} {closed}'
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == (words == "doctor")  # no worker runs here
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["alerts list", "dlq list --json", "metrics --once", "--help"])
def test_an_output_that_is_full_is_named_and_one_that_left_is_not(
    words: str, nasty: dict[str, str], tmp_path: Path
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = amn(words.split(), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"amn: standard output cannot be written: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = amn(words.split(), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_notes_and_logs_that_cannot_be_written_end_nothing(nasty: dict[str, str], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        words = ["alerts", "silence", "--rule", "unknown", "--for", "1h", "--reason", "x"]
        assert amn(words, stdout=subprocess.PIPE, stderr=full).returncode == 0
        judge = subprocess.Popen([sys.executable, "-P", "-m", "ops.cli", "drift", "judge"], stderr=full)
        with pytest.raises(subprocess.TimeoutExpired):
            judge.wait(6)
        judge.terminate()
        assert judge.wait(30) == 0


def amn(words: list[str], **options: Any) -> Any:
    return subprocess.run([sys.executable, "-P", "-m", "ops.cli", *words], timeout=60, **options)
