"""`amn bank`: build, check and look at reference banks."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import FileRows, Rows, load_npz
from amn.manifest import EncoderName, check_one_encoder
from amn.policy import DEFAULT
from ops import console
from ops.commands import options
from ops.errors import FileRefused
from ops.health.counters import read_counters
from ops.settings import artifacts_folder
from producer.keys import Keys
from producer.messages import DIMENSIONS
from producer.settings import ProducerSettings

#: Fields of the stats hash (workers/handlers/recheck.py).
_RECHECKS = {
    "rechecked": "checked",
    "recheck:agreed": "agreed",
    "recheck:unsafe": "unsafe",
    "recheck:dropped": "dropped",
}
_folder = click.argument("folder", required=False, type=options.PATH)


@click.group(short_help="Build and inspect reference banks.")
def bank() -> None:
    """Build and inspect the bank of reference vectors that gives an answer its confidence.

    \b
    Examples:
      amn bank build vectors.npz --out artifacts/lvm/banks/bank_new
      amn bank info
      amn bank check artifacts/lvm/banks/bank_new
      amn bank status
    """


@bank.command()
@click.argument("vectors", metavar="VECTORS", type=options.PATH)
@click.option("--out", required=True, type=options.PATH, help="Folder to make.")
@click.option(
    "--epsilon", type=click.FloatRange(0, 1), default=0.98, help="Vectors with a larger cosine count as one."
)
@click.option(
    "--index",
    type=click.Choice(["auto", "exact", "cells"]),
    default="auto",
    help="auto: cells above 16,384 vectors; it needs faiss-cpu.",
)
@click.option("--cells", type=click.IntRange(1), help="Cells of the index. [default: 1024]")
@click.option("--count", type=click.IntRange(2), help="Draw so many source vectors at random. [default: all]")
@click.option("--seed", default=0, show_default=True, help="Seed of the draw and of the index.")
@click.option("--encoder", help="Recipe that made the vectors, where the file does not say it.")
@click.option(
    "--queries",
    type=options.PATH,
    help="Held-out contexts (n, 5, 768), or vectors with articles: the index is made wide enough for them.",
)
@click.option("--model", type=options.PATH, help="Model that predicts them. [default: in production]")
@click.option("--policy", default=DEFAULT, help="Policy whose thresholds the index is to meet.")
@options.artifacts
def build(vectors: Path, out: Path, artifacts: Path | None, **chosen: Any) -> None:
    """Build a bank from unit vectors, shape (N, 768): an .npy, or an .npz with the key `vectors`.

    Of documents, such as those of `amn data encode`, it takes those that the model was trained on, and none
    that it is judged by.
    """
    from amn.bank.build import BankSettings, build_bank
    from amn.bank.settings import Guard, IndexSettings
    from amn.policy import load_policy

    model = chosen["model"] or artifacts_folder(artifacts) / "production_model"
    array, encoder = _read(vectors, chosen["encoder"] or "", model)
    rows = _drawn(array, vectors, chosen["count"], chosen["seed"])
    index = IndexSettings(seed=chosen["seed"])
    settings = BankSettings(
        encoder_id=encoder.encoder_id,
        encoder_sha256=encoder.encoder_sha256,
        source=f"{vectors.name}, {len(rows)} vectors, seed {chosen['seed']}",
        epsilon=chosen["epsilon"],
        indexed=None if chosen["index"] == "auto" else chosen["index"] == "cells",
        index=replace(index, cells=chosen["cells"]) if chosen["cells"] else index,
        queries=_queries(chosen["queries"], model, encoder),
        guard=Guard.of(load_policy(chosen["policy"])),
    )
    with console.Bar("vectors") as bar:
        manifest = build_bank(rows, out, settings, bar.draw)
    console.say(f"{out}: {manifest.bank_id}, {manifest.count} vectors, {manifest.merged} merged away")
    if manifest.index is not None:
        _say_agreement(manifest.agreement)


@bank.command()
@_folder
@options.artifacts
@options.as_json
def info(folder: Path | None, artifacts: Path | None, as_json: bool) -> None:
    """Open a bank as a worker does, and say what it holds. FOLDER defaults to the one in production."""
    from amn.bank.bank import load_bank

    path = folder or artifacts_folder(artifacts) / "reference_bank"
    manifest = asdict(load_bank(path).manifest)
    manifest["pieces"] = len(manifest["pieces"])
    if as_json:
        console.say_json(manifest)
        return
    index, measured = manifest.pop("index") or {}, manifest.pop("agreement")
    shown = {"folder": path.resolve(), **manifest, "index": "cells" if index else "exact", **index}
    for name, value in shown.items():
        if name not in ("files", "pieces"):
            console.say(f"{name:12} {value}")
    if index:
        _say_agreement(measured)


@bank.command()
@_folder
@options.artifacts
def check(folder: Path | None, artifacts: Path | None) -> None:
    """Hash every byte of a bank. A worker that starts looks at a sample of a large one."""
    from amn.bank.files import check_files, read_manifest

    path = folder or artifacts_folder(artifacts) / "reference_bank"
    manifest = read_manifest(path)
    check_files(path, manifest, whole=True)
    console.say(f"{path}: {manifest.bank_id} is whole, {manifest.count} vectors")


@bank.command()
@options.server
@options.as_json
def status(settings: ProducerSettings, as_json: bool) -> None:
    """Compare the decisions of a running service's approximate bank with an exact search."""
    with options.client(settings) as client:
        counts = read_counters(client, Keys(settings.queue))
    found = {name: counts.get(field, 0) for field, name in _RECHECKS.items()}
    if as_json:
        console.say_json(found)
        return
    checked = found["checked"]
    if not checked:
        console.say("no answer was searched again; workers do so where the bank has an index, once a minute")
        return
    console.say(
        f"{checked} answers searched again exactly: {found['agreed'] / checked:.2%} decided the same, unsafe "
        f"keeps {found['unsafe'] / checked:.2%}; {found['dropped']} more were drawn, and left out"
    )


def _queries(path: Path | None, model: Path, encoder: EncoderName) -> NDArray[np.float32] | None:
    if path is None:
        return None
    from amn.evaluation.bank_queries import held_out_predictions
    from amn.predictor import Predictor

    predictor = Predictor.open(model)
    check_one_encoder({predictor.model_id: predictor.checkpoint.manifest, "the bank's data": encoder})
    return held_out_predictions(path, predictor)


def _say_agreement(measured: dict[str, Any] | None) -> None:
    """Says how the index decided against an exact search; loudly if that is too little or not known."""
    if measured is None:
        console.say(
            "WARNING: nobody measured how often this index decides as an exact search would;", err=True
        )
        console.say("         build it with --queries", err=True)
        return
    console.say(
        f"agreement    {measured['agree']:.2%} of {measured['queries']} held-out queries, unsafe keeps "
        f"{measured['unsafe']:.2%}, rate {measured['bias']:+.2%}; confidence {measured['confidence']}, "
        f"margin {measured['margin']}"
    )
    if not measured["met"]:
        console.say(
            "WARNING: that is less than a bank must meet: 99.7 %, unsafe 0.1 %, rate 0.2 %;", err=True
        )
        console.say("         use --index exact or more --cells", err=True)


def _read(path: Path, encoder: str, model: Path) -> tuple[Rows, EncoderName]:
    """The vectors of a file, and the encoder that made them: an .npz can say it, an .npy cannot."""
    from amn.data.dataset import training_vectors
    from amn.data.readers import known_encoder, read_vectors
    from amn.model.checkpoint import read_manifest

    array: Rows | None
    stored: object = ""
    sha256 = ""
    if path.suffix not in (".npy", ".npz"):
        data = read_vectors(path, encoder)
        rows = training_vectors(data, read_manifest(model).unseen_domain)[0]
        return rows, EncoderName(data.encoder_id, data.encoder_sha256)
    if path.suffix == ".npz":
        arrays = load_npz(path, ("vectors", "encoder", "encoder_sha256"), lazy=("vectors",))
        array, stored = arrays.get("vectors"), arrays.get("encoder", "")
        sha256 = str(arrays.get("encoder_sha256", ""))
        if array is None:
            raise FileRefused(f"{path} has no array called vectors")
    else:
        array = FileRows(path)
    if array.ndim != 2 or array.shape[1] != DIMENSIONS:
        raise FileRefused(f"{path} has shape {array.shape}; expected (N, {DIMENSIONS})")
    return array, EncoderName(known_encoder(path, stored, encoder), sha256)


def _drawn(array: Rows, path: Path, count: int | None, seed: int) -> Rows:
    if count is None:
        return array
    if count > len(array):
        raise FileRefused(f"{path} has {len(array)} vectors, --count asks for {count}; lower --count")
    return array[np.sort(np.random.default_rng(seed).choice(len(array), size=count, replace=False))]
