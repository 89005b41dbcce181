"""`amn bank`: build, check and look at reference banks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from ops import console
from ops.commands import options
from ops.errors import FileRefused
from ops.settings import artifacts_folder
from producer.messages import DEFAULT_ENCODER, DIMENSIONS

if TYPE_CHECKING:
    from amn.reference_build import OnProgress

_folder = click.argument("folder", required=False, type=click.Path(path_type=Path))


@click.group(short_help="Build and inspect reference banks.")
def bank() -> None:
    """Build and inspect the bank of reference vectors that gives an answer its confidence.

    \b
    Examples:
      amn bank build vectors.npy --out artifacts/lvm/banks/bank_new
      amn bank info
      amn bank check artifacts/lvm/banks/bank_new
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
@click.option(
    "--index",
    type=click.Choice(["auto", "exact", "cells"]),
    default="auto",
    show_default=True,
    help="auto: cells above 16,384 vectors; it needs faiss-cpu.",
)
@click.option("--cells", type=click.IntRange(1), help="Cells of the index. [default: 1024]")
@click.option("--count", type=click.IntRange(2), help="Draw so many source vectors at random. [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the draw, and of the index.")
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Recipe that made the vectors.")
def build(vectors: Path, out: Path, **chosen: Any) -> None:
    """Build a bank from a file of unit vectors, shape (N, 768); an .npz needs the key `vectors`."""
    from amn.index import IndexSettings
    from amn.reference_build import BankSettings, build_bank

    rows = _chosen(_read(vectors), vectors, chosen["count"], chosen["seed"])
    index = IndexSettings(seed=chosen["seed"])
    settings = BankSettings(
        encoder_id=chosen["encoder"],
        source=f"{vectors.name}, {len(rows)} vectors, seed {chosen['seed']}",
        epsilon=chosen["epsilon"],
        indexed=None if chosen["index"] == "auto" else chosen["index"] == "cells",
        index=replace(index, cells=chosen["cells"]) if chosen["cells"] else index,
    )
    with _progress() as on_progress:
        manifest = build_bank(rows, out, settings, on_progress)
    click.echo(f"{out}: {manifest.bank_id}, {manifest.count} vectors, {manifest.merged} merged away")


@bank.command()
@_folder
@options.artifacts
@options.as_json
def info(folder: Path | None, artifacts: Path | None, as_json: bool) -> None:
    """Open a bank as a worker does, and say what it holds. FOLDER defaults to the one in production."""
    from amn.reference import load_bank

    path = folder or artifacts_folder(artifacts) / "reference_bank"
    manifest = asdict(load_bank(path).manifest)
    manifest["pieces"] = len(manifest["pieces"])
    if as_json:
        click.echo(json.dumps(manifest))
        return
    index = manifest.pop("index") or {}
    shown = {"folder": path.resolve(), **manifest, "index": "cells" if index else "exact", **index}
    for name, value in shown.items():
        if name not in ("files", "pieces"):
            click.echo(f"{name:12} {value}")


@bank.command()
@_folder
@options.artifacts
def check(folder: Path | None, artifacts: Path | None) -> None:
    """Hash every byte of a bank. A worker that starts looks at a sample of a large one."""
    from amn.reference_files import check_files, read_manifest

    path = folder or artifacts_folder(artifacts) / "reference_bank"
    manifest = read_manifest(path)
    check_files(path, manifest, whole=True)
    click.echo(f"{path}: {manifest.bank_id} is whole, {manifest.count} vectors")


@bank.command()
@click.argument("vectors", metavar="VECTORS", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .npy to write, float16.")
@click.option("--count", default=543_556, show_default=True, help="Vectors in all.")
@click.option("--noise", default=0.5, show_default=True, help="Of a made vector, relative to its length.")
@click.option("--seed", default=0, show_default=True)
def enlarge(vectors: Path, out: Path, count: int, noise: float, seed: int) -> None:
    """Make a large set for measuring: the training side of VECTORS, then vectors between two of one article.

    VECTORS is a file with articles, as `python -m amn train --data` takes it.
    """
    from amn.dataset import training_vectors
    from amn.readers import read_vectors
    from amn.reference_enlarge import enlarge as make

    rows, article = training_vectors(read_vectors(vectors))
    with _progress() as on_progress:
        make(
            rows,
            article,
            out,
            count=count,
            noise=noise,
            seed=seed,
            on_rows=lambda done: on_progress("making vectors", done, count),
        )
    click.echo(f"{out}: {count} vectors, the first {len(rows)} real")


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar that starts anew with each step."""
    with console.progress("vectors") as bar:
        task = bar.add_task("", total=None, note="")

        def on_progress(step: str, done: int, total: int) -> None:
            if bar.tasks[0].description != step:
                bar.reset(task, description=step, total=total)
            bar.update(task, completed=done)
            bar.refresh()

        yield on_progress


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
        return array
    if count > len(array):
        raise FileRefused(f"{path} has {len(array)} vectors, --count asks for {count}; lower --count")
    rows = np.sort(np.random.default_rng(seed).choice(len(array), size=count, replace=False))
    return np.asarray(array[rows])
