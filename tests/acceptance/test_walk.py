"""The way of one real request stays short. `make walk` prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json
from tests.walk import walks
answered, escalated = walks()
more = escalated.beyond(answered)
print(json.dumps([[len(one.stops), one.lines, len(one.files)] for one in (answered, more)]))
"""
#: Functions, lines of code and Python files: from the context to the answer, and what an escalation adds.
#: The aims are 60, 800 and 18, and 20 functions more; these are what was reached, and may only shrink.
ANSWERED_MAX, ESCALATION_MAX = (73, 1_000, 33), (22, 235, 13)


@pytest.mark.slow
def test_a_request_passes_no_more_functions_lines_and_files_than_it_did() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    answered, more = json.loads(done.stdout.splitlines()[-1])
    assert answered[0] > more[0] > 0
    assert all(size <= limit for size, limit in zip(answered, ANSWERED_MAX, strict=True)), answered
    assert all(size <= limit for size, limit in zip(more, ESCALATION_MAX, strict=True)), more
