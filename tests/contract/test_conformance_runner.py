"""The examination itself: odd programs and servers end in a verdict, or in a line that says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from producer.conformance import program
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


def test_a_command_that_a_program_does_not_have_is_left_out_also_for_a_part_of_it() -> None:
    error = '{"error": {"code": "unsupported", "message": "no ends"}}'
    for answer in (error, f'{{"results": [{{"ok": true}}, {error}]}}'):
        odd = talking(f"print({answer!r})")
        with pytest.raises(LeftOut, match="no ends"):
            odd.ask("submit")
        odd.kill()


@pytest.mark.parametrize(
    "answer", ['{"ok": true}', '{"results": [1]}', '{"results": [{"ok": true}], "error": null}']
)
def test_answers_of_another_form_fail_a_point_and_end_no_run(answer: str, real_server: Any) -> None:
    code = f"import sys\nfor line in sys.stdin: print({answer!r}, flush=True)"
    ended = examination(real_server.url, "--only", "A truth", "--", sys.executable, "-c", code)
    assert ended.stdout.startswith("FAILED    A truth is reported"), ended
    assert ended.stdout.endswith("0 passed, 1 FAILED, 0 left out\n"), ended
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


def test_the_way_to_a_server_passes_on_breaks_and_heals(real_server: Any) -> None:
    way = Way(real_server.url)
    assert way.possible
    with connect(ProducerSettings(url=way.url), retries=0) as client:
        assert client.set("x", "y" * 1_000_000)
        assert len(client.get("x")) == 1_000_000
        way.snap(away=True)
        with pytest.raises(Exception, match=r"closed|reset|Broken"):
            client.get("x")
        way.away = False
        assert len(client.get("x")) == 1_000_000
        way.mute = True
        with pytest.raises(Exception, match=r"closed|reset|Broken"):
            client.set("z", "1")
        assert real_server.admin.get("z") == b"1"
    assert not Way("rediss://127.0.0.1:1/0").possible
