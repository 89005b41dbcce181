"""python -m bench publish FOLDER: the figures of a run into docs/benchmarks.md.

Between `<!-- begin: NAME -->` and `<!-- end: NAME -->` comes NAME.md of the folder, with its plots, which go
to docs/img. Sections without a file keep what they have. All reports together are kept as one JSON file.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import click

from bench.goals import goals_table

_SECTION = re.compile(r"(<!-- begin: ([a-z-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
PAGE, KEPT = Path("docs/benchmarks.md"), Path("artifacts/reports/benchmarks.json")


@click.command("publish")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def command(folder: Path) -> None:
    """Fill docs/benchmarks.md from a run's folder."""
    reports = {p.stem: json.loads(neutral(p.read_text("utf-8"))) for p in sorted(folder.glob("*.json"))}
    commits = {str(report["environment"]["commit"]) for report in reports.values()}
    if len(commits) != 1:
        raise click.ClickException(
            f"{folder} holds reports of the commits {', '.join(sorted(commits)) or '(none)'}: one page is "
            "one run; measure into another folder with --out"
        )
    sections = {p.stem: neutral(p.read_text("utf-8")).strip() for p in sorted(folder.glob("*.md"))}
    sections["goals"] = goals_table(reports)
    plots = {path.stem: f"img/bench-{path.name}" for path in sorted(folder.glob("*.svg"))}
    for path in folder.glob("*.svg"):
        shutil.copyfile(path, PAGE.parent / plots[path.stem])
    PAGE.write_text(filled(PAGE.read_text("utf-8"), sections, plots), "utf-8")
    KEPT.write_text(json.dumps(reports, indent=1) + "\n", "utf-8")
    click.echo(f"written: {PAGE}, {len(plots)} plots, {KEPT}", err=True)


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
