"""The way of one real request stays short. `make walk` prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json
from tests.walk import walks
answered, escalated = walks()
more = escalated.beyond(answered)
print(json.dumps([[len(one.stops), one.lines, len(one.files)] for one in (answered, more)]))
"""
ALERT = """
import json
from tests.walk import alert
walk = alert()
print(json.dumps([len(walk.stops), walk.lines, len(walk.files)]))
"""
#: Functions, lines of code and Python files: from the context to the answer, and what an escalation adds.
#: The aims are 60, 800 and 18, and 20 functions more; these are what was reached, and may only shrink.
ANSWERED_MAX, ESCALATION_MAX = (67, 955, 28), (22, 225, 11)
#: The same of a drift alert, from the sums of the samples to the page at a webhook: the whole turn of the
#: judge, all its rules included, and the sender's. The aims are 60 and 900.
ALERT_MAX = (207, 1_775, 45)


def counted(code: str) -> Any:
    """What the last line says of a script in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_request_passes_no_more_functions_lines_and_files_than_it_did() -> None:
    answered, more = counted(CODE)
    assert answered[0] > more[0] > 0
    assert all(size <= limit for size, limit in zip(answered, ANSWERED_MAX, strict=True)), answered
    assert all(size <= limit for size, limit in zip(more, ESCALATION_MAX, strict=True)), more


@pytest.mark.slow
def test_a_drift_alert_passes_no_more_functions_lines_and_files_than_it_did() -> None:
    size = counted(ALERT)
    assert all(0 < one <= limit for one, limit in zip(size, ALERT_MAX, strict=True)), size
