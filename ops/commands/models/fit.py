"""`amn calibrate`, `amn slices`, `amn sample`, `amn training-vectors`: artifacts beside the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amn.errors import DataError
from ops import console
from ops.commands.models import options

_number = click.IntRange(1)


@click.command(short_help="Fit the gate's score and blend, and show what they are worth.")
@click.argument("amn", type=options.path)
@click.argument("fallback", type=options.path)
@click.option("--bank", required=True, type=options.path, help="Folder of the reference bank.")
@options.data
@options.out("Folder for the artifact and the report.")
@options.threads
@options.quick
def calibrate(
    amn: Path, fallback: Path, bank: Path, data: Path, out: Path, threads: int, quick: bool
) -> None:
    """Fit the gate's score and blend for the checkpoints AMN and FALLBACK on held-out articles.

    Nothing that is live changes: moving the link gate_calibration promotes a calibration.
    """
    import torch

    from amn.calibration.calibrate import calibrate_models

    torch.set_num_threads(threads)
    click.echo(calibrate_models((amn, fallback), bank, data, out, 10 if quick else 1))
    console.say(str(out))


@click.command(short_help="Fit the OOD score's references and thresholds, and judge them.")
@options.data
@options.encoder
@options.out("The new folder; without it the fit is only judged.", required=False)
@options.unseen
@click.option("--references", type=_number, default=1024)
@click.option("--neighbours", type=_number, default=10)
@click.option("--cells", type=_number, default=64)
@click.option("--seed", default=0, show_default=True)
def slices(data: Path, encoder: str, out: Path | None, unseen_domain: str, **sizes: int) -> None:
    """Fit the OOD score's references, cells and thresholds, and judge them (docs/drift-slices.md)."""
    from amn.data.readers import read_vectors
    from amn.evaluation.slices_fit import fit, write

    if out is not None and out.exists():
        raise DataError(f"{out} exists already; name a new folder")
    found = fit(read_vectors(data, encoder), unseen_domain=unseen_domain, **sizes)
    for name, value in found.manifest.measured.items():
        console.say(f"{name:24} {value:.4f}")
    if out is not None:
        console.say(f"{write(found, out).slices_id} in {out}")


@click.command(short_help="Write the small file of held-out sequences that ships.")
@options.data
@options.encoder
@options.out("The .npz to write.")
@options.unseen
@click.option("--vectors", type=_number, default=2_750)
@click.option("--seed", default=0, show_default=True)
def sample(data: Path, encoder: str, out: Path, **chosen: Any) -> None:
    """Write a small file of real held-out sequences, such as the one that ships."""
    from amn.data.dataset import write_sample
    from amn.data.readers import read_vectors

    windows = write_sample(read_vectors(data, encoder), out, **chosen)
    console.say(f"{windows} windows in {out} ({out.stat().st_size / 1e6:.1f} MB)")


@click.command(short_help="Write the training side's vectors, the source of a bank.")
@options.data
@options.encoder
@options.out("The .npz to write, or a .npy, which cannot name the encoder.")
@options.unseen
def training_vectors(data: Path, encoder: str, out: Path, unseen_domain: str) -> None:
    """Write the vectors of the training side as float16 (n, 768): the source of a reference bank."""
    from amn.data.dataset import write_training_vectors
    from amn.data.readers import read_vectors

    vectors, articles = write_training_vectors(read_vectors(data, encoder), out, unseen_domain)
    console.say(f"{vectors} vectors of {articles} articles in {out}")
