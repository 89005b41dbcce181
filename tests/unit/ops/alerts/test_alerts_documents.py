"""The runbook has a heading a rule, and names commands that exist; the page on alerts tells the truth."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from ops.alerts.config import TYPES, load
from ops.alerts.watch import RULES as OF_THE_SENDER
from ops.app import app

ROOT = Path(__file__).parents[4]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text("utf-8")
ALERTS = (ROOT / "docs" / "alerts.md").read_text("utf-8")


def rules_in_code() -> set[str]:
    """Names that the judge and the sender give to findings, and those of the Prometheus rules."""
    found = set(OF_THE_SENDER)
    for path in [*(ROOT / "ops" / "drift").glob("*.py"), ROOT / "ops" / "alerts" / "watch.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [word.value for word in node.keywords if word.arg == "rule"]
            if name in ("finding", "_finding"):
                given += node.args[:1]
            if name in ("finding", "_finding", "Finding", "Objective"):
                found |= {one.value for one in given if isinstance(one, ast.Constant)}
    document = yaml.safe_load((ROOT / "ops" / "deploy" / "prometheus" / "amn-rules.yml").read_text("utf-8"))
    rules = [rule for group in document["groups"] for rule in group["rules"] if "alert" in rule]
    return found | {rule["labels"]["rule"] for rule in rules}


def headings() -> list[str]:
    return re.findall(r"^## (.+)$", RUNBOOK, re.M)


def test_every_rule_has_a_heading_and_every_heading_a_rule() -> None:
    assert len(headings()) == len(set(headings()))
    assert set(headings()) == rules_in_code()
    assert {"ood_delta", "slo_fallback", "judge_dead", "server_down"} <= set(headings())


@pytest.mark.parametrize("rule", headings())
def test_a_heading_says_what_it_means_what_to_look_at_what_to_do_and_how_it_ends(rule: str) -> None:
    section = RUNBOOK.split(f"\n## {rule}\n")[1].split("\n## ")[0]
    for word in ("**Means.**", "**Look.**", "**Do.**", "**Ends**"):
        assert section.count(word) == 1
    checks = [line for line in section.splitlines() if line.startswith("    ")]
    assert len(checks) == 3
    assert all(line.strip().startswith("amn ") for line in checks)


def test_the_commands_of_both_pages_exist() -> None:
    known: set[tuple[str, ...]] = set()
    for name, command in app.commands.items():
        known.add((name,))
        known |= {(name, sub) for sub in getattr(command, "commands", {})}
    asked = set(re.findall(r"(?<![-\w] )\bamn ([a-z]+)(?: ([a-z]+))?", RUNBOOK + ALERTS))
    groups = {name for name, command in app.commands.items() if isinstance(command, click.Group)}
    for first, second in asked:
        words = (first, second) if first in groups and second else (first,)
        assert words in known or first == "worker", words


def test_the_files_of_the_page_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", ALERTS, re.S)
    monkeypatch.setenv("PAGERDUTY_KEY", "R" * 32)
    monkeypatch.setenv("SLACK_WEBHOOK", "https://hooks.slack.com/services/x")
    monkeypatch.setenv("DESK_KEY", "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=")
    monkeypatch.setenv("MAIL_URL", "mailtos://user:password@example.com")
    path = tmp_path / "alerts.toml"
    path.write_text(text, "utf-8")
    assert {table["type"] for table in tomllib.loads(text)["sinks"].values()} == set(TYPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ops.alerts.sinks.apprise.Apprise.__post_init__", lambda self: None)
        assert set(load(path).sinks) == {"pager", "chat", "am", "desk", "mail"}


def test_the_page_names_every_variable() -> None:
    from ops.alerts import config, settings

    variables = {variable for _, _, variable in config._VARIABLES} | {config.FILE_VARIABLE}
    variables |= set(settings._VARIABLES.values())
    assert {
        name for name in variables if f"`{name}`" in ALERTS or f"{name}\n" in ALERTS or name in ALERTS
    } == variables
