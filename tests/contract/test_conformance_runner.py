"""The examination itself: odd programs and servers end in a verdict, or in a line that says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from producer.conformance import program
from producer.conformance.__main__ import conclude
from producer.conformance.program import Failed, LeftOut, Program, Way
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect

ROOT = Path(__file__).parents[2]
REFERENCE = [sys.executable, str(ROOT / "tests" / "reference_client.py")]


def examination(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "producer.conformance", "--url", url, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def talking(code: str) -> Program:
    return Program([sys.executable, "-u", "-c", f"import sys\nfor line in sys.stdin:\n {code}"])


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('no JSON')", "no JSON object on a line within .*'no JSON'"),
        ("print([1])", "no JSON object"),
        ("sys.exit(3)", "no JSON object.*''"),
        ("import time; time.sleep(9)", "no JSON object on a line within 2 s"),
    ],
)
def test_what_a_program_answers_wrongly_is_said(code: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PATIENCE_S", 2.0)
    odd = talking(code)
    try:
        with pytest.raises(Failed, match=why):
            odd.ask("open")
    finally:
        odd.kill()


def test_only_parts_that_a_client_may_be_without_are_left_out() -> None:
    error = '{"error": {"code": "unsupported", "message": "not here"}}'
    odd = talking(f"print({error!r})")
    for may_be, do in ((True, "cancel"), (True, "truth"), (False, "open"), (False, "result")):
        with pytest.raises(LeftOut, match="not here") if may_be else nullcontext():
            assert "error" in odd.ask(do)
    odd.kill()
    odd = talking(f"""print('{{"results": [{{"ok": true}}, {error}]}}')""")
    with pytest.raises(LeftOut, match="not here"):
        odd.ask("submit", requests=[{}, {"ends": ""}])
    assert odd.ask("submit", requests=[{"ends": ""}, {}])["results"][0] == {"ok": True}
    odd.kill()


def test_a_program_that_reads_no_more_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PATIENCE_S", 1.0)
    deaf = Program(["sh", "-c", "sleep 60 & sleep 60"])
    with pytest.raises(Failed, match="no JSON object"):
        deaf.ask("submit", context="A" * 1_000_000)
    deaf.kill()  # waits for the end of all who have its pipes


@pytest.mark.parametrize(
    "answer", ['{"ok": true}', '{"results": [1]}', '{"results": [{"ok": true}], "error": null}']
)
def test_answers_of_another_form_fail_a_point_and_end_no_run(answer: str, real_server: Any) -> None:
    code = f"import sys\nfor line in sys.stdin: print({answer!r}, flush=True)"
    ended = examination(real_server.url, "--only", "A truth", "--", sys.executable, "-c", code)
    assert ended.stdout.startswith("FAILED    A truth is reported"), ended
    assert ended.stdout.endswith("0 passed, 1 FAILED, 0 left out: it does not conform\n"), ended
    assert real_server.admin.keys("*") == []


def test_a_server_that_is_away_a_program_that_is_missing_and_a_queue_in_use_are_named(
    real_server: Any,
) -> None:
    away = examination("redis://127.0.0.1:1/0", "--", *REFERENCE)
    assert (away.returncode, away.stderr.split(":")[0]) == (2, "server_unavailable")
    missing = examination(real_server.url, "--", "no-such-program-here")
    assert (missing.returncode, missing.stderr.split(":")[0]) == (2, "invalid_settings")
    assert "cannot be started" in missing.stderr
    real_server.admin.xadd(Keys("used").requests, {"request": b"of somebody"})
    used = examination(real_server.url, "--own-queue", "used", "--", *REFERENCE)
    assert (used.returncode, used.stderr.split(":")[0]) == (2, "invalid_settings")
    assert "in use" in used.stderr
    assert real_server.admin.xlen(Keys("used").requests) == 1
    real_server.admin.set(Keys("kept").requests_bytes, 1)
    assert examination(real_server.url, "--own-queue", "kept", "--", *REFERENCE).returncode == 2
    assert real_server.admin.get(Keys("kept").requests_bytes) == b"1"


def test_who_was_not_examined_does_not_conform(real_server: Any) -> None:
    none = examination(real_server.url, "--only", "nonsense", "--", *REFERENCE)
    assert (none.returncode, none.stdout) == (2, "0 passed, 0 FAILED, 0 left out: nothing was examined\n")
    alone = examination(real_server.url, "--only", "Live", "--", *REFERENCE)
    assert alone.returncode == 2
    assert alone.stdout.count("no worker of kind amn says that it lives in queue 'main'") == 2


@pytest.mark.parametrize(
    ("verdicts", "every", "code", "told"),
    [
        ((3, 0, 0), True, 0, "3 passed, 0 FAILED, 0 left out: it conforms"),
        ((2, 0, 1), False, 0, "2 passed, 0 FAILED, 1 left out: it conforms, 1 point left out"),
        ((2, 0, 1), True, 1, "2 passed, 0 FAILED, 1 left out: it does not conform, 1 point left out"),
        ((0, 1, 2), False, 1, "0 passed, 1 FAILED, 2 left out: it does not conform, 2 points left out"),
        ((0, 0, 3), False, 2, "0 passed, 0 FAILED, 3 left out: nothing was examined"),
    ],
)
def test_a_client_conforms_when_points_passed_and_none_failed(
    verdicts: tuple[int, int, int], every: bool, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = Counter(dict(zip(("passed", "FAILED", "left out"), verdicts, strict=True)))
    assert conclude(counts, every=every) == code
    assert capsys.readouterr().out == told + "\n"


def test_the_way_to_a_server_passes_on_breaks_and_heals(make_server: Callable[..., Any]) -> None:
    server = make_server()
    admin, way = server.client(), Way(server.url)
    assert way.possible
    with connect(ProducerSettings(url=way.url), retries=0) as client:
        assert client.set("x", "y" * 1_000_000)
        assert len(client.get("x")) == 1_000_000
        way.snap(away=True)
        with pytest.raises(Exception, match=r"closed|reset|Broken"):
            client.get("x")
        way.away = False
        assert len(client.get("x")) == 1_000_000
        way.lose(b"z")
        with pytest.raises(Exception, match=r"closed|reset|Broken"):
            client.set("z", "1")
        assert (admin.get("z"), way.lost) == (b"1", 1)
        assert client.get("z") == b"1"
        way.ahead_s = 3600
        assert client.time()[0] - admin.time()[0] in (3600, 3599)
        way.heal()
        assert abs(client.time()[0] - admin.time()[0]) <= 1
        server.kill()
        for _ in range(2):
            with pytest.raises(Exception, match=r"closed|reset|Broken"):
                client.get("x")
        server.start()
        assert client.set("x", "y")
    assert not Way("rediss://127.0.0.1:1/0").possible
