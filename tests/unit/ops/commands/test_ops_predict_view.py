"""A run is shown with its rate and the time that is left, on a terminal and without one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections import Counter

import pytest

from ops.commands import predict
from ops.predict.run import Progress

_DRAWS = """
import time
from collections import Counter
from ops.commands.predict import View
from ops.predict.run import Progress
codes = Counter(short_document=400, bad_norm=3)
with View() as view:
    for done in (50_000, 50_000, 60_000, 70_000):
        view.progress(Progress(rows=100_000, done=done, failed=403, escalated=5_000, codes=codes))
        time.sleep(0.4)
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_of_any_width_shows_every_number(columns: int) -> None:
    parent, child = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", _DRAWS], stderr=child, env=environment, check=True)
    os.close(child)
    shown = ""
    while chunk := _read(parent):
        shown += chunk
    os.close(parent)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    last = [line for line in re.split(r"[\r\n]+", plain) if "70000/100000" in line][-1]
    assert re.search(r"rows [1-9][\d,]+/s 3 failed, 5,000 escalated .*left 0:00:0\d", last), last
    rate = int(re.findall(r"([\d,]+)/s", last)[0].replace(",", ""))
    assert 10_000 < rate < 40_000  # what was there before has no part in it


def _read(parent: int) -> str:
    try:
        return os.read(parent, 65_536).decode()
    except OSError:  # the other side is closed
        return ""


def test_without_a_terminal_a_line_a_minute_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 30.0, 61.0])
    monkeypatch.setattr(predict.time, "monotonic", lambda: next(clock, 61.0))
    monkeypatch.setattr(predict.console, "Bar", _NoBar)
    view = predict.View()
    for done in (1_000, 31_000, 62_000):
        view.progress(Progress(rows=123_000, done=done, failed=80, codes=Counter(short_document=80)))
    assert capsys.readouterr().err == (
        "predicting: 62,000 of 123,000 rows, 1,000/s, 1 min left, 0 failed, 0 escalated\n"
    )


def test_a_run_that_begins_after_a_minute_has_a_first_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0])
    monkeypatch.setattr(predict.time, "monotonic", lambda: next(clock, 61.0))
    monkeypatch.setattr(predict.console, "Bar", _NoBar)
    predict.View("chunks").draw("reading", 0, 9, "0 refused")
    assert capsys.readouterr().err == "reading: 0 of 9 chunks, 0/s, 0 refused\n"


class _NoBar:
    visible = False

    def __init__(self, _: str) -> None: ...

    def draw(self, *_: object) -> None: ...
