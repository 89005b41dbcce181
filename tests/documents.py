"""The fenced blocks of the documents, and the script that runs those of a page as they stand.

A comment above a fence says what becomes of it. Nobody sees it who reads the page.

    <!-- run -->            run in the page's shell (`sh`), or by Python; one after the other
    <!-- start: WORDS -->   run in the background; the page goes on when its output holds WORDS
    <!-- prints -->         what the block before printed; numbers may differ, and `...` stands for any line
    <!-- by: FILE -->       run by that test
    <!-- not run: WHY -->   read only

A page runs in a folder that has what a checkout has under `artifacts`, `examples` and `.venv`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(
    r"^(?P<mark><!-- (?P<verb>run|start|prints|by|not run)(?:: (?P<rest>.*?))? -->\n\n?)?"
    r"^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PRELUDE = """set -euo pipefail
pids=
trap 'for p in $pids; do kill -TERM -- -$p 2>/dev/null || :; done; wait' EXIT"""
_START = """
setsid bash -c {text} >{log} 2>&1 &
pids="$pids $!"
for _ in $(seq 600); do grep -qF -- {words} {log} && break; kill -0 $! || break; sleep 0.1; done
grep -qF -- {words} {log} || {{ cat {log}; exit 1; }}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fence of a page: its language, its text, and the comment above it."""

    page: str
    line: int
    language: str
    text: str
    verb: str
    rest: str


def pages() -> list[Path]:
    """The documents that a reader sees."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path | str, language: str | None = None) -> list[Block]:
    """The fences of a page, such as "docs/gateway.md", in order; those of one language."""
    path = ROOT / page
    text = path.read_text("utf-8")
    return [
        Block(
            page=str(path.relative_to(ROOT)),
            line=text.count("\n", 0, found.start()) + 1,
            language=found["language"].strip(),
            text=found["text"],
            verb=found["verb"] or "",
            rest=found["rest"] or "",
        )
        for found in _FENCE.finditer(text)
        if language is None or found["language"].strip() == language
    ]


def script(found: list[Block]) -> str:
    """One shell script of the blocks that are run; a block that fails ends it."""
    lines = [_PRELUDE]
    for block in found:
        lines.append(f"echo '== {block.page}, line {block.line}'")
        if block.verb == "start":
            quoted = {"text": shlex.quote(block.text), "words": shlex.quote(block.rest)}
            lines.append(_START.format(log=f"started-{block.line}", **quoted))
        elif block.verb == "run" and block.language == "python":
            lines.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.verb == "run":
            lines.append(block.text)
    return "\n".join(lines)


def run_page(page: str, folder: Path, timeout_s: float = 100) -> str:
    """Runs the marked blocks of a page in a folder, and returns what they printed."""
    for name in ("artifacts", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AMN_", "REDIS_")) and "proxy" not in name.lower()
    }
    environment["PATH"] = f"{sys.prefix}/bin{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script(blocks(page))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def missing_lines(block: Block, printed: str) -> list[str]:
    """The lines of a `prints` block that the output does not have, numbers aside."""
    have = {_without_numbers(line) for line in printed.splitlines()}
    return [
        line
        for line in block.text.splitlines()
        if line.strip() not in ("", "...") and _without_numbers(line) not in have
    ]


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+(?:[.,]\d+)*", "0", " ".join(line.split()))
