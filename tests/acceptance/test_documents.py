"""The marked blocks of every page are run as they stand, and no page has a block that nobody answers for."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import textwrap
from pathlib import Path

import click
import pytest
from documents import ROOT, Block, blocks, missing_lines, pages, run_page, script
from drawings import IMAGES, PICTURES

from bench.__main__ import main as bench
from ops.app import app

#: Pages that need more than pip brings.
NEEDS = {"examples/node/README.md": [pytest.mark.needs("node")]}
RUN = [
    pytest.param(name, marks=[*NEEDS.get(name, []), *([pytest.mark.slow] if "start" in verbs else [])])
    for name in (str(page.relative_to(ROOT)) for page in pages())
    if {"run", "start"} & (verbs := {block.verb for block in blocks(name)})
]
#: The commands of these projects, by the words that a line begins with.
PROGRAMS = {("amn",): app, ("python", "-m", "bench"): bench}
CHECKED = [
    pytest.param(line, id=f"{page.stem}: {line}")
    for page in pages()
    for block in blocks(page)
    if block.verb == "checked"
    for line in textwrap.dedent(block.text).replace("\\\n", "").splitlines()
]


@pytest.mark.timeout(600)  # on a loaded machine a service needs a minute to start
@pytest.mark.parametrize("page", RUN)
def test_the_marked_blocks_of_a_page_run_as_they_stand(page: str, tmp_path: Path) -> None:
    printed = run_page(page, tmp_path, timeout_s=580)
    for block in blocks(page):
        if block.verb == "prints":
            assert missing_lines(block, printed) == [], printed


@pytest.mark.parametrize(
    ("verb", "language", "text"),
    [("run", "sh", "false"), ("run", "python", "raise SystemExit(3)\n"), ("start", "sh", "echo other")],
)
def test_a_block_that_fails_fails_its_page(verb: str, language: str, text: str, tmp_path: Path) -> None:
    block = Block(page="x", line=1, language=language, text=text, verb=verb, rest="words")
    command = ["bash", "-c", script([block])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=30)
    assert done.returncode != 0


def test_the_readme_is_short_and_its_diagrams_are_as_drawn() -> None:
    assert (ROOT / "README.md").read_text("utf-8").count("\n") <= 150
    for name, draw in PICTURES.items():
        assert (IMAGES / f"{name}.svg").read_text("utf-8") == draw().svg(), "make drawings"


def test_every_block_of_a_page_says_what_becomes_of_it() -> None:
    silent = [f"{b.page}, line {b.line}" for page in pages() for b in blocks(page) if not b.verb]
    assert silent == []


@pytest.mark.parametrize("line", CHECKED)
def test_a_command_that_is_not_run_takes_the_arguments_that_it_is_given(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] in ("export", "ln"):
        return
    [start] = [start for start in PROGRAMS if tuple(words[: len(start)]) == start]
    command, words = PROGRAMS[start], words[len(start) :]
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
    with command.make_context(name, words, auto_envvar_prefix="AMN"):
        pass


def test_a_test_that_a_mark_names_reads_that_page() -> None:
    named = [block for page in pages() for block in blocks(page) if block.verb == "by"]
    assert all(Path(block.page).name in (ROOT / block.rest).read_text("utf-8") for block in named)


def test_the_table_of_the_first_page_which_is_the_menu_of_the_site_has_each_page_once() -> None:
    rows = re.findall(r"^\| \*\*.*$", (ROOT / "docs" / "index.md").read_text("utf-8"), re.MULTILINE)
    listed = [
        Path(os.path.normpath(ROOT / "docs" / link)) for link in re.findall(r"\]\(([^)]+)\)", "".join(rows))
    ]
    assert sorted(listed) == sorted(set(pages()) - {ROOT / "docs" / "index.md", ROOT / "README.md"})


def test_every_link_into_the_repository_leads_to_a_file() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in re.findall(r"\]\(([^):#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert dead == []


def test_a_line_that_was_not_printed_is_missed_and_its_numbers_are_not() -> None:
    block = Block(page="x", line=1, language="text", text="a 0.5 b\n...\nc\n", verb="prints", rest="")
    assert missing_lines(block, "a 12,000 b\n") == ["c"]
