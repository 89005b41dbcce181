"""The blocks of code of the documents, and the script that runs those of a page as they stand.

A comment above a block says what becomes of it. Readers of the page do not see it.

    <!-- run -->            run in the page's shell (`sh`), by Python or by Node.js; one after the other
    <!-- start: WORDS -->   run in the background; the page goes on when its output holds WORDS
    <!-- prints -->         what the block before printed; numbers may differ, and `...` stands for any line
    <!-- by: FILE -->       run by that test
    <!-- checked -->        each line is a command that takes these arguments; it is not run
    <!-- not run: WHY -->   read only
    <!-- all by: FILE -->   once on a page: that test runs or checks each block without a comment of its own

A page runs in a folder that has what a checkout has under `artifacts`, `examples`, `docs`, `ops` and `.venv`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from servers import free_port

ROOT = Path(__file__).resolve().parents[1]
#: Ports that pages name; where they are run, free ones take their place.
PORTS = ("8001",)
EXAMPLES = [ROOT / "examples" / "README.md", ROOT / "examples" / "node" / "README.md"]
_BLOCK = re.compile(
    r"^(?P<mark><!-- (?P<verb>run|start|prints|by|checked|not run)(?:: (?P<rest>.*?))? -->\n\n?)?"
    r"(?:^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$|(?<=\n\n)(?P<indented>(?: {4}[^\n]*\n|\n(?= {4}))+))",
    re.MULTILINE | re.DOTALL,
)
_ALL = re.compile(r"^<!-- all by: (.*) -->$", re.MULTILINE)
_PRELUDE = """set -euo pipefail
here=$PWD
pids=
trap 'for p in $pids; do kill -TERM -- -$p 2>/dev/null || :; done; wait' EXIT"""
_START = """
setsid bash -c {text} >{log} 2>&1 &
pids="$pids $!"
for _ in $(seq 1500); do grep -qF -- {words} {log} && break; kill -0 $! || break; sleep 0.1; done
grep -qF -- {words} {log} || {{ cat {log}; exit 1; }}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of a page, fenced or indented: its language, its text, and the comment that is for it."""

    page: str
    line: int
    language: str
    text: str
    verb: str
    rest: str


def pages() -> list[Path]:
    """The documents that a reader sees."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *EXAMPLES]


def blocks(page: Path | str, language: str | None = None) -> list[Block]:
    """The blocks of a page, such as "docs/gateway.md", in order; those of one language."""
    path = ROOT / page
    text = path.read_text("utf-8")
    rest = found[1] if (found := _ALL.search(text)) else ""
    return [
        Block(
            page=str(path.relative_to(ROOT)),
            line=text.count("\n", 0, found.start()) + 1,
            language=(found["language"] or "").strip(),
            text=found["text"] or found["indented"],
            verb=found["verb"] or ("by" if rest else ""),
            rest=found["rest"] or rest,
        )
        for found in _BLOCK.finditer(text)
        if language is None or (found["language"] or "").strip() == language
    ]


def script(found: list[Block]) -> str:
    """One shell script of the blocks that are run; a block that fails ends it."""
    lines = [_PRELUDE]
    for block in found:
        lines.append(f"echo '== {block.page}, line {block.line}'")
        if block.verb == "start":
            quoted = {"text": shlex.quote(block.text), "words": shlex.quote(block.rest)}
            lines.append(_START.format(log=f"$here/started-{block.line}", **quoted))
        elif block.verb == "run" and block.language == "python":
            lines.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.verb == "run" and block.language == "js":
            lines.append(f"node --input-type=module - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.verb == "run":
            lines.append(block.text)
    return "\n".join(lines)


def environment() -> dict[str, str]:
    """That of a person whose virtual environment is active, without settings of ours."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AMN_", "REDIS_")) and "proxy" not in name.lower()
    }
    places = [f"{sys.prefix}/bin", f"{ROOT}/.venv-node/bin", environment["PATH"]]
    return {**environment, "PATH": os.pathsep.join(places)}


def run_page(page: str, folder: Path, timeout_s: float = 100) -> str:
    """Runs the marked blocks of a page in a folder, and returns what they printed."""
    for name in ("artifacts", "examples", "docs", "ops"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    text = script(blocks(page))
    for port in PORTS:
        text = text.replace(port, str(free_port()))
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=environment(),
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
