"""`amn explain`: why a request was, or would be, escalated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.errors import FileRefused
from ops.settings import artifacts_folder
from producer.errors import WireError
from producer.protocol import wire


@click.command(short_help="Why a request is escalated, rule by rule.")
@click.argument("request_file", metavar="REQUEST.msgpack", type=options.FILE)
@options.policy
@options.artifacts
@options.as_json
def explain(request_file: Path, policy: str, artifacts: Path | None, as_json: bool) -> None:
    """Show every rule's value for one request, and by which model, bank and policy.

    REQUEST.msgpack holds one request as it is on the wire: the field `request` of a stream entry, or
    what `producer.protocol.wire.encode_request` gives. The budget is left aside: it depends on the others.

    \b
    Examples:
      amn explain request.msgpack
      amn explain request.msgpack --policy card --json
    """
    from ops.gate.explain import explain as explained

    try:
        request = wire.decode_request(request_file.read_bytes())
    except (OSError, WireError) as error:
        raise FileRefused(f"{request_file} cannot be read as a request: {error}") from error
    found = explained(request, policy, artifacts_folder(artifacts))
    console.answer(as_json, found, _show)


def _show(found: dict[str, Any]) -> None:
    out, columns = console.out(), ("rule", "method", "value", "fires")
    table = console.DataTable(*columns, "fired", title=f"request {found.pop('id')}")
    for row in found.pop("rules"):
        table.add_row(*(row[name] for name in columns), "yes" if row["fired"] else "")
    out.print(table)
    verdict, shed = "escalate" if found.pop("escalate") else "answered by AMN", found.pop("shed")
    reasons = ", ".join(found.pop("reasons")) or "no rule fired"
    out.print(f"\n{verdict}{f', shed: {shed}' if shed else ''} ({reasons}), within the budget")
    for name, value in found.items():
        out.print(f"{name:12} {value or 'none'}")
