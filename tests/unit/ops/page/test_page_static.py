"""The files of the page: vendored ones are as reviewed, and none needs a network or makes markup of data."""

from __future__ import annotations

import hashlib
import re
from itertools import product
from pathlib import Path

import pytest

from ops.drift.service import history
from producer.stages import END_TO_END, REPLY
from producer.stages import STAGES as STAGE_NAMES

STATIC = Path(__file__).parents[4] / "ops" / "page" / "static"
VENDOR = STATIC / "vendor"
OURS = sorted(path for path in STATIC.iterdir() if path.suffix in (".js", ".css", ".html"))
TABLE = re.compile(r"const (\w+) = \{\n(.*?)\n\};", re.DOTALL)
BYTES_MAX = 150_000


def test_vendored_files_have_the_hashes_that_were_recorded() -> None:
    recorded = dict(line.split()[::-1] for line in (VENDOR / "SHA256SUMS").read_text("utf-8").splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    assert recorded.keys() == found.keys() - {"SHA256SUMS", "SOURCE.txt"}
    assert recorded == {name: found[name] for name in recorded}
    assert "MIT" in (VENDOR / "LICENSE.uPlot").read_text("utf-8")


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file()) < BYTES_MAX


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_file_asks_another_machine_or_makes_markup_of_data(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"""["'(]\s*(https?:)?//\w""", text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
    )
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", text)


def test_each_series_that_the_plots_ask_for_is_kept_by_the_history() -> None:
    asked = set(re.findall(r'from: "(\w+)"', (STATIC / "page.js").read_text("utf-8")))
    assert len(asked) > 10
    assert asked <= history.columns([])["series"].keys()


def test_each_name_has_one_meaning_in_its_table() -> None:
    text = (STATIC / "words.js").read_text("utf-8")
    tables = {name: re.findall(r"^  (\w+):", body, re.M) for name, body in re.findall(TABLE, text)}
    assert {"REASONS", "STAGES"} <= tables.keys()
    for name, words in tables.items():
        assert len(words) == len(set(words)), name
    assert set(tables["STAGES"]) <= {*STAGE_NAMES, REPLY, END_TO_END}


def colours(theme: str) -> dict[str, str]:
    css = (STATIC / "page.css").read_text("utf-8")
    light, _, dark = css.partition("@media (prefers-color-scheme: dark)")
    found = re.findall(
        r"--([\w-]+): (#[0-9a-f]{6})", {"light": light, "dark": dark.partition("\n}")[0]}[theme]
    )
    return dict(found)


def luminance(colour: str) -> float:
    """As WCAG 2.2 defines it: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(colour[first : first + 2], 16) / 255 for first in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_text_can_be_read_on_every_ground(theme: str) -> None:
    found = colours(theme)
    texts = ["text", "soft", "blue", "orange", "green", "purple", "grey", "red"]
    grounds = ["page", "card"]
    pairs = [*product(texts, grounds), ("text", "bad-tint"), ("red", "bad-tint"), ("orange", "warning-tint")]
    pairs += [("green", "well-tint"), ("grey", "unknown-tint"), ("orange", "bad-tint"), ("blue", "bad-tint")]
    for one, other in pairs:
        bright, dark = sorted((luminance(found[one]), luminance(found[other])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (theme, one, other)
