"""python -m bench publish FOLDER: the figures of a run into the documents.

Between `<!-- begin: NAME -->` and `<!-- end: NAME -->` of docs/benchmarks.md comes NAME.md of the folder,
with its plots, which go to docs/img. Sections without a file keep what they have. All reports together are
kept as one JSON file, and the sweep of concurrency as the one to start from.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bench.goals import goals_table
from bench.systems import TUNED

_SECTION = re.compile(r"(<!-- begin: ([a-z-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


@click.command("publish")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--page", type=click.Path(path_type=Path, exists=True), default=Path("docs/benchmarks.md"))
@click.option("--images", type=click.Path(path_type=Path), default=Path("docs/img"), show_default=True)
@click.option(
    "--json", "kept", type=click.Path(path_type=Path), default=Path("artifacts/reports/benchmarks.json")
)
def command(folder: Path, page: Path, images: Path, kept: Path) -> None:
    """Fill docs/benchmarks.md from a run's folder."""
    reports = {
        path.stem: json.loads(neutral(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))
    }
    sections = {path.stem: neutral(path.read_text("utf-8")).strip() for path in sorted(folder.glob("*.md"))}
    sections["goals"] = goals_table(reports)
    if "steps" in reports:
        sections["steps"] = steps_table(reports["steps"])
    plots = copied(folder, images)
    page.write_text(filled(page.read_text("utf-8"), sections, plots), "utf-8")
    if "tune" in reports:
        kept_before = json.loads(TUNED.read_text("utf-8"))["systems"]
        swept = reports["tune"]
        # A system that was not swept this time keeps its choice, and says when it was made.
        made = {name: {**row, "environment": swept["environment"]} for name, row in swept["systems"].items()}
        both = {"systems": kept_before | made}
        TUNED.write_text(json.dumps(both, indent=1) + "\n", "utf-8")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(reports, indent=1) + "\n", "utf-8")
    click.echo(f"written: {page}, {len(plots)} plots in {images}, {kept}", err=True)


def neutral(text: str) -> str:
    """Without the folders of the machine: of an absolute path only its last part stays."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.-]+/)+", "", text)


def filled(text: str, sections: Mapping[str, str], plots: Mapping[str, str]) -> str:
    """The page with each section that there is a text for replaced."""

    def section(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in sections:
            return match.group(0)
        images = [f"![{plot}]({path})" for plot, path in plots.items() if plot in (name, f"{name}-flame")]
        return begin + "\n\n".join([sections[name], *images]) + "\n" + end

    return _SECTION.sub(section, text)


def copied(folder: Path, images: Path) -> dict[str, str]:
    """Copies the plots; their paths from the page, by name."""
    images.mkdir(parents=True, exist_ok=True)
    found = {}
    for path in sorted(folder.glob("*.svg")):
        shutil.copyfile(path, images / f"bench-{path.name}")
        found[path.stem] = f"{images.name}/bench-{path.name}"
    return found


def steps_table(steps: Mapping[str, Any]) -> str:
    """What was run, how long it took, and what else the machine did."""
    lines = ["| step | command | s | load before | taken by the host |", "|---|---|---:|---:|---:|"]
    for name, row in steps.items():
        words = " ".join(row["words"])
        if row.get("code") is None:
            lines.append(f"| {name} | `python -m bench {words}` | left out | | |")
            continue
        load = (row.get("load_before") or [float("nan")])[0]
        mark = "" if row["code"] == 0 else f" (code {row['code']})"
        stolen = f"{row['stolen']:.1%}" if row.get("stolen") is not None else ""
        lines.append(
            f"| {name} | `python -m bench {words}` | {row['seconds']:.0f}{mark} | {load} | {stolen} |"
        )
    return "\n".join(lines)
