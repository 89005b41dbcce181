"""`amn evaluate`, `ratio`, `card`, `promote`, `rollback` and `import-published`: finished models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ops import console
from ops.commands.models import options
from ops.settings import artifacts_folder, sample_path

_LINKS = ("production_model", "fallback_accuracy", "fallback_secondary")
_link = click.option("--link", default=_LINKS[0], type=click.Choice(_LINKS))
_root = click.option(
    "--root",
    type=options.path,
    envvar="AMN_ARTIFACTS",
    help="Folder of the links. [default: artifacts/lvm, which begins as a copy of the shipped ones]",
)


def show_evaluation(
    folders: Sequence[Path], data: Path, out: Path, *, every: int = 1, timed: bool = True
) -> None:
    """Evaluates checkpoints, writes the figures and the page, and prints the table."""
    from amn.data.readers import read_vectors
    from amn.evaluation import report
    from amn.evaluation.evaluate import common_encoder, evaluate
    from amn.model import checkpoint

    loaded = [checkpoint.load(folder) for folder in folders]
    vectors = read_vectors(data, common_encoder(loaded))
    result = evaluate(loaded, vectors, every=every, with_latency=timed)
    report.write_evaluation(result, out)
    click.echo(report.markdown_table(result))
    console.say(str(out / "evaluation.html"))


@click.command(short_help="Judge checkpoints and baselines on the same windows.")
@click.argument("checkpoints", nargs=-1, type=options.path)
@click.option("--data", type=options.path, help="Vectors in reading order. [default: the shipped sample]")
@options.out("Folder for the JSON and the page.")
@options.threads
@options.quick
@click.option("--no-latency", is_flag=True, help="Skip the clock.")
def evaluate(
    checkpoints: tuple[Path, ...], data: Path | None, out: Path, threads: int, quick: bool, no_latency: bool
) -> None:
    """Judge checkpoints and the two baselines on the same windows; the first is the reference.

    Without CHECKPOINTS, the model and the fallback that workers would serve here. The shipped sample is
    small: docs/models.md has the figures of whole held-out sets.

    Writes evaluation.json and evaluation.html, and prints the main table.
    """
    import torch

    torch.set_num_threads(threads)
    folder = artifacts_folder(None)
    judged = checkpoints or (folder / "production_model", folder / "fallback_accuracy")
    show_evaluation(judged, sample_path(data), out, every=10 if quick else 1, timed=not no_latency)


@click.command(short_help="How many times longer the slower of two models takes.")
@click.argument("fast")
@click.argument("slow")
@click.option("--rounds", type=click.IntRange(1), default=36)
@options.threads
def ratio(fast: str, slow: str, rounds: int, threads: int) -> None:
    """Measures how many times longer SLOW takes than FAST on this machine, by calls in turn.

    Each is a checkpoint folder or the name of a layout, such as transformer.
    """
    import torch

    from amn.config import PARAMETERS, ModelConfig
    from amn.evaluation.latency import times
    from amn.model.checkpoint import load
    from amn.model.layouts import build
    from amn.model.network import count_parameters

    torch.set_num_threads(threads)
    models = [build(ModelConfig(layout=x)) if x in PARAMETERS else load(Path(x)).model for x in (fast, slow)]  # type: ignore[arg-type]
    for size in (1, 32):
        # Other work on the machine only ever adds time: the best call of each counts.
        few, many = times(models, size, rounds).min(axis=0)
        console.say(f"batch {size:>3}: {few * 1e3:.3f} ms and {many * 1e3:.3f} ms, {many / few:.1f} times")
    small, large = (count_parameters(model) for model in models)
    console.say(f"parameters: {small:,} and {large:,}, {large / small:.1f} times")


@click.command(short_help="Write a model card from a manifest and an evaluation.")
@click.argument("path", type=options.path)
@click.option("--evaluation", required=True, type=options.path, help="An evaluation.json.")
@options.out("File to write. [default: standard output]", required=False)
def card(path: Path, evaluation: Path, out: Path | None) -> None:
    """Write a model card of the checkpoint PATH, with the figures of an evaluation."""
    from amn.evaluation.report import card_of
    from amn.files import write_whole

    text = card_of(path, evaluation)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_whole(out, text)


@click.command(short_help="Point a link at a checkpoint that passes the gates.")
@click.argument("path", type=options.path)
@_link
@_root
@click.option(
    "--calibration", type=options.path, help="Gate calibration that was fitted for it, to be linked with it."
)
@click.option("--bank", type=options.path, help="Reference bank, to be linked with it.")
@click.option(
    "--windows-min", type=click.IntRange(1), default=1_000, help="It must be judged on; fewer prove less."
)
@click.option("--no-latency", is_flag=True, help="Skip the latency gate.")
def promote(path: Path, link: str, root: Path | None, no_latency: bool, **chosen: Any) -> None:
    """Point a link that workers load from at the checkpoint PATH, if it passes every gate."""
    from amn.evaluation import promotion

    root = root or _own_root()
    said = promotion.promote(path, root / link, with_latency=not no_latency, **chosen)
    console.say(said)


def _own_root() -> Path:
    """The folder of models that are served here; where those are the package's, a copy with links."""
    from amn.evaluation import promotion

    found, own = artifacts_folder(None), Path("artifacts") / "lvm"
    if found == own or not (found / _LINKS[0]).is_dir() or (found / _LINKS[0]).is_symlink():
        return found
    promotion.copy_with_links(found, own)
    console.say(f"copied the shipped models from {found} to {own}: what starts here now serves those")
    return own


@click.command(short_help="Point a link back at its earlier target.")
@_link
@_root
def rollback(link: str, root: Path | None) -> None:
    """Point a link back at the model that it named before the last promotion."""
    from amn.evaluation import promotion

    console.say(promotion.rollback((root or artifacts_folder(None)) / link))


@click.command(short_help="Turn a published .pt file into a checkpoint folder.")
@click.argument("file", type=options.path)
@options.out("Checkpoint folder to write.")
@click.option("--encoder", required=True, metavar="ID", help="Encoder of the vectors it was trained on.")
def import_published(file: Path, out: Path, encoder: str) -> None:
    """Turn a published .pt file into a verified checkpoint folder."""
    from amn.evaluation import importing

    console.say(f"{importing.import_published(file, out, encoder_id=encoder).model_id} in {out}")
    console.say(f"warning: {importing.WARNING}", err=True)
