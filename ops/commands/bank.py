"""`amn bank`: build and look at reference banks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ops import console
from ops.commands import options
from ops.errors import FileRefused
from ops.settings import artifacts_folder
from producer.messages import DEFAULT_ENCODER, DIMENSIONS

_REDRAW_EVERY = 500


@click.group(short_help="Build and inspect reference banks.")
def bank() -> None:
    """Build and inspect the bank of reference vectors that gives an answer its confidence.

    \b
    Examples:
      amn bank build vectors.npy --out artifacts/lvm/banks/bank_new --count 4096
      amn bank info
    """


@bank.command()
@click.argument("vectors", metavar="VECTORS.npy|.npz", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 1),
    default=0.98,
    show_default=True,
    help="Vectors with a larger cosine count as one.",
)
@click.option("--count", type=click.IntRange(2), help="Draw so many source vectors at random. [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Recipe that made the vectors.")
def build(vectors: Path, out: Path, epsilon: float, count: int | None, seed: int, encoder: str) -> None:
    """Build a bank from a file of unit vectors, shape (N, 768); an .npz needs the key `vectors`."""
    from amn.reference import build_bank

    chosen = _chosen(_read(vectors), vectors, count, seed)
    with console.progress("vectors") as bar:
        task = bar.add_task("merging near-duplicates", total=len(chosen), note="")

        def on_progress(done: int) -> None:
            if done % _REDRAW_EVERY == 0:
                bar.update(task, completed=done)
                bar.refresh()

        source = f"{vectors.name}, {len(chosen)} vectors, seed {seed}"
        manifest = build_bank(
            chosen, out, encoder_id=encoder, source=source, epsilon=epsilon, on_progress=on_progress
        )
    click.echo(f"{out}: {manifest.bank_id}, {manifest.count} vectors, {manifest.merged} merged away")


@bank.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@options.artifacts
@options.as_json
def info(folder: Path | None, artifacts: Path | None, as_json: bool) -> None:
    """Check a bank and say what it holds. FOLDER defaults to the one in production."""
    from amn.reference import load_bank

    path = folder or artifacts_folder(artifacts) / "reference_bank"
    manifest = asdict(load_bank(path).manifest)
    if as_json:
        click.echo(json.dumps(manifest))
        return
    for name, value in {"folder": path.resolve(), **manifest}.items():
        click.echo(f"{name:12} {value}")


def _read(path: Path) -> NDArray[np.floating]:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        array = stored if isinstance(stored, np.ndarray) else stored["vectors"]
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise FileRefused(f"{path} cannot be read as vectors: {error}") from error
    if array.ndim != 2 or array.shape[1] != DIMENSIONS:
        raise FileRefused(f"{path} has shape {array.shape}; expected (N, {DIMENSIONS})")
    return array


def _chosen(array: NDArray[np.floating], path: Path, count: int | None, seed: int) -> NDArray[np.floating]:
    if count is None:
        return np.asarray(array)
    if count > len(array):
        raise FileRefused(f"{path} has {len(array)} vectors, --count asks for {count}; lower --count")
    rows = np.sort(np.random.default_rng(seed).choice(len(array), size=count, replace=False))
    return np.asarray(array[rows])
