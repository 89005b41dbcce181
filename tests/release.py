"""What a release must have settled before the long checks begin: `make release-check` (CONTRIBUTING.md)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_HEADING = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)


def faults(version: str, changelog: str, tags: str, changed: str) -> list[str]:
    """What does not belong to a release: by the version, the changelog, git's tags and uncommitted files."""
    found = []
    if changed:
        found.append(f"commit or remove first:\n{changed}")
    if f"v{version}" in tags.split():
        found.append(f"the tag v{version} exists already; raise the version in pyproject.toml")
    headings = list(_HEADING.finditer(changelog))
    if [heading[1] for heading in headings[:2]] != ["Unreleased", version]:
        found.append(f"CHANGELOG.md must begin with [Unreleased], then [{version}]")
    elif not headings[1][2]:
        found.append(f"[{version}] has no date in CHANGELOG.md; write `## [{version}] - YYYY-MM-DD`")
    elif changelog[headings[0].end() : headings[1].start()].strip():
        found.append(f"entries stand under [Unreleased]; move them to [{version}], or raise the version")
    return found


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Prints what is amiss, and ends with 1."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = faults(version, changelog, _git("tag"), _git("status", "--porcelain"))
    print("\n".join(found) or f"{version} can be released when the checks below pass")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
