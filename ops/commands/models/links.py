"""`amn promote`, `amn rollback` and `amn import-published`: the models that workers load."""

from __future__ import annotations

from pathlib import Path

import click

from ops import console
from ops.commands.models import options

_LINKS = ("production_model", "fallback_accuracy", "fallback_secondary")
_link = click.option("--link", default=_LINKS[0], show_default=True, type=click.Choice(_LINKS))
_root = click.option("--root", default="artifacts/lvm", show_default=True, type=options.path)


@click.command(short_help="Point a link at a checkpoint that passes the gates.")
@click.argument("path", type=options.path)
@_link
@_root
@click.option(
    "--calibration", type=options.path, help="Gate calibration that was fitted for it, to be linked with it."
)
@click.option("--no-latency", is_flag=True, help="Skip the latency gate.")
def promote(path: Path, link: str, root: Path, calibration: Path | None, no_latency: bool) -> None:
    """Point a link that workers load from at the checkpoint PATH, if it passes every gate."""
    from amn.evaluation.promotion import promote as move

    console.say(move(path, root / link, calibration=calibration, with_latency=not no_latency))


@click.command(short_help="Point a link back at its earlier target.")
@_link
@_root
def rollback(link: str, root: Path) -> None:
    """Point a link back at the model that it named before the last promotion."""
    from amn.evaluation.promotion import rollback as move

    console.say(move(root / link))


@click.command(short_help="Turn a published .pt file into a checkpoint folder.")
@click.argument("file", type=options.path)
@options.out("Checkpoint folder to write.")
@click.option("--encoder", required=True, metavar="ID", help="Encoder of the vectors it was trained on.")
def import_published(file: Path, out: Path, encoder: str) -> None:
    """Turn a published .pt file into a verified checkpoint folder."""
    from amn.evaluation.importing import WARNING
    from amn.evaluation.importing import import_published as turn

    console.say(f"{turn(file, out, encoder_id=encoder).model_id} in {out}")
    console.say(f"warning: {WARNING}", err=True)
