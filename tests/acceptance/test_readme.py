"""The README's client example, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from conftest import ROOT, Amn


def test_the_clients_five_lines_run_and_print_an_answer(service: Amn) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    url = (service.folder / "var" / "amn" / "url").read_text().strip()
    assert "redis://127.0.0.1:6379/0" in example
    ended = subprocess.run(
        [sys.executable, "-c", example.replace("redis://127.0.0.1:6379/0", url)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.match(r"\(768,\) (amn|stacked) 0\.\d+ \(", ended.stdout)
