"""`amn evaluate`, `amn ratio` and `amn card`: what finished models are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ops import console
from ops.commands.models import options


def show_evaluation(
    folders: Sequence[Path], data: Path, out: Path, *, every: int = 1, timed: bool = True
) -> None:
    """Evaluates checkpoints, writes the figures and the page, and prints the table."""
    from amn.data.readers import read_vectors
    from amn.evaluation import report
    from amn.evaluation.evaluate import common_encoder, evaluate, write_evaluation
    from amn.model import checkpoint

    loaded = [checkpoint.load(folder) for folder in folders]
    vectors = read_vectors(data, common_encoder(loaded))
    result = evaluate(loaded, vectors, every=every, with_latency=timed)
    write_evaluation(result, out)
    click.echo(report.markdown_table(result))
    console.say(f"\n{out / 'evaluation.html'}")


@click.command(short_help="Judge checkpoints and baselines on the same windows.")
@click.argument("checkpoints", nargs=-1, required=True, type=options.path)
@options.data
@options.out("Folder for the JSON and the page.")
@options.threads
@click.option("--quick", is_flag=True, help="A tenth of the windows.")
@click.option("--no-latency", is_flag=True, help="Skip the clock.")
def evaluate(
    checkpoints: tuple[Path, ...], data: Path, out: Path, threads: int, quick: bool, no_latency: bool
) -> None:
    """Judge checkpoints and the two baselines on the same windows; the first is the reference.

    Writes evaluation.json and evaluation.html, and prints the main table.
    """
    import torch

    torch.set_num_threads(threads)
    show_evaluation(checkpoints, data, out, every=10 if quick else 1, timed=not no_latency)


@click.command(short_help="How many times longer the slower of two models takes.")
@click.argument("fast")
@click.argument("slow")
@click.option("--rounds", type=click.IntRange(1), default=36, show_default=True)
@options.threads
def ratio(fast: str, slow: str, rounds: int, threads: int) -> None:
    """Measures how many times longer SLOW takes than FAST on this machine, by calls in turn.

    Each is a checkpoint folder or the name of a layout, such as transformer.
    """
    import torch

    from amn.evaluation.latency import best_in_turn, named
    from amn.model.network import count_parameters

    torch.set_num_threads(threads)
    models = [named(name) for name in (fast, slow)]
    for size in (1, 32):
        few, many = best_in_turn(models, size, rounds)
        console.say(f"batch {size:>3}: {few * 1e3:.3f} ms and {many * 1e3:.3f} ms, {many / few:.1f} times")
    small, large = (count_parameters(model) for model in models)
    console.say(f"parameters: {small:,} and {large:,}, {large / small:.1f} times")


@click.command(short_help="Write a model card from a manifest and an evaluation.")
@click.argument("path", type=options.path)
@click.option("--evaluation", required=True, type=options.path, help="An evaluation.json.")
@options.out("File to write. [default: standard output]", required=False)
def card(path: Path, evaluation: Path, out: Path | None) -> None:
    """Write a model card of the checkpoint PATH, with the figures of an evaluation."""
    from amn.evaluation.card import card_of
    from amn.files import write_whole

    text = card_of(path, evaluation)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_whole(out, text)
