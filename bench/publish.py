"""python -m bench publish FOLDER: the figures of a run into docs/benchmarks.md.

Between `<!-- begin: NAME -->` and `<!-- end: NAME -->` come the sentences of NAME.md of the folder, and its
plots, which go to docs/img. Sections without a file keep what they have. The tables are for who measures. One
JSON file keeps all reports, also earlier ones that this run lacks: `amn capacity` reads them.
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
    sections = {p.stem: sentences(neutral(p.read_text("utf-8"))) for p in sorted(folder.glob("*.md"))}
    sections["goals"] = goals_table(reports)
    page = PAGE.read_text("utf-8")
    plots = {}
    for path in sorted(folder.glob("*.svg")):
        if f"<!-- begin: {path.stem.removesuffix('-flame')} -->" in page:
            plots[path.stem] = f"img/bench-{path.name}"
            shutil.copyfile(path, PAGE.parent / plots[path.stem])
    PAGE.write_text(filled(page, sections, plots), "utf-8")
    KEPT.write_text(json.dumps(json.loads(KEPT.read_text("utf-8")) | reports, indent=1) + "\n", "utf-8")
    click.echo(f"written: {PAGE}, {len(plots)} plots, {KEPT}", err=True)


def sentences(text: str) -> str:
    """Without tables."""
    return "\n\n".join(part for part in text.strip().split("\n\n") if not part.startswith("|"))


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
