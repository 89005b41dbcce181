"""The marked blocks of every page are run as they stand; new pages have no block that nobody answers for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks, missing_lines, pages, run_page, script
from drawings import IMAGES, PICTURES

RUN = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if "start" in verbs else [])
    for page in pages()
    if {"run", "start"} & (verbs := {block.verb for block in blocks(page)})
]
#: Pages older than the marks, whose blocks have tests of their own or are read only.
UNMARKED = {
    "README.md", "docs/api.md", "ARCHITECTURE.md", "CHANGELOG.md", "DECISIONS.md",
    *(f"docs/{name}.md" for name in (
        "alerts", "bank", "benchmarks", "capacity", "conformance", "dashboard", "deploy", "drift",
        "drift-data", "drift-slices", "escalation", "files", "gateway", "models", "runbook", "running",
        "wire",
    )),
}  # fmt: skip


@pytest.mark.timeout(600)  # one of them trains a model
@pytest.mark.parametrize("page", RUN)
def test_the_marked_blocks_of_a_page_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    printed = run_page(str(page.relative_to(ROOT)), tmp_path, timeout_s=580)
    for block in blocks(page):
        if block.verb == "prints":
            assert missing_lines(block, printed) == [], printed


@pytest.mark.parametrize(
    ("verb", "language", "text"),
    [("run", "sh", "false"), ("run", "python", "raise SystemExit(3)\n"), ("start", "sh", "echo other")],
)
def test_a_block_that_fails_fails_its_page(verb: str, language: str, text: str) -> None:
    block = Block(page="x", line=1, language=language, text=text, verb=verb, rest="words")
    done = subprocess.run(["bash", "-c", script([block])], capture_output=True, check=False, timeout=30)
    assert done.returncode != 0


def test_the_readme_is_short_and_its_diagrams_are_as_drawn() -> None:
    assert (ROOT / "README.md").read_text("utf-8").count("\n") <= 150
    for name, draw in PICTURES.items():
        assert (IMAGES / f"{name}.svg").read_text("utf-8") == draw().svg(), "make drawings"


def test_every_block_of_a_new_page_says_what_becomes_of_it() -> None:
    silent = [
        f"{block.page}, line {block.line}"
        for page in pages()
        if str(page.relative_to(ROOT)) not in UNMARKED
        for block in blocks(page)
        if not block.verb
    ]
    assert silent == []


def test_a_test_that_a_mark_names_reads_that_page() -> None:
    named = [block for page in pages() for block in blocks(page) if block.verb == "by"]
    assert all(Path(block.page).name in (ROOT / block.rest).read_text("utf-8") for block in named)


def test_every_link_into_the_repository_leads_to_a_file() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*pages(), *ROOT.glob("examples/**/README.md")]
        for target in re.findall(r"\]\(([^):#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if "node_modules" not in page.parts and not (page.parent / target).exists()
    ]
    assert dead == []


def test_a_line_that_was_not_printed_is_missed_and_its_numbers_are_not() -> None:
    block = Block(page="x", line=1, language="text", text="a 0.5 b\n...\nc\n", verb="prints", rest="")
    assert missing_lines(block, "a 12,000 b\n") == ["c"]
