"""Options that the commands about models share, and the progress of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from amn.config import UNSEEN_DOMAIN
from ops import console

path = click.Path(path_type=Path)
data = click.option("--data", required=True, type=path, help="Vectors in reading order (docs/models.md).")
encoder = click.option(
    "--encoder", default="", metavar="ID", help="Encoder of the vectors, where the file does not name it."
)
unseen = click.option(
    "--unseen-domain", default=UNSEEN_DOMAIN, metavar="NAME", help="Kept out of training, and judged as OOD."
)
threads = click.option("--threads", type=click.IntRange(1), default=1)
quick = click.option("--quick", is_flag=True, help="A tenth of the windows.")


def out(text: str, *, required: bool = True) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """The option that names the output."""
    return click.option("--out", required=required, type=path, help=text)


@contextmanager
def shown_run() -> Iterator[tuple[Callable[[str], None], Callable[[int, int, int], None]]]:
    """Shows the lines of a training run, and its progress after each batch."""
    with console.Bar("batches") as bar:
        yield bar.print, lambda epoch, batch, batches: bar.draw(f"epoch {epoch + 1}", batch, batches)
