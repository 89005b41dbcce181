"""What a run leaves to look at: progress in the terminal, log.csv, curve.svg."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amn.files import write_whole, writing

LOG_FILE = "log.csv"
CURVE_FILE = "curve.svg"


class RunLog:
    """Shows an epoch as a bar and keeps one row of figures for each epoch."""

    def __init__(self, folder: Path, epochs: int, console: Console) -> None:
        self.folder = folder
        self.epochs = epochs
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("starting", total=None)

    def __enter__(self) -> RunLog:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def tick(self, epoch: int, batch: int, batches: int) -> None:
        """Move the bar."""
        self.progress.update(
            self.task,
            description=f"epoch {epoch + 1}/{self.epochs}",
            completed=batch,
            total=batches,
        )

    def report(self, row: dict[str, float]) -> None:
        """Print one line for an epoch."""
        figures = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name.endswith("cosine"))
        self.console.print(f"epoch {row['epoch']:>3.0f}  loss {row['train_loss']:.6f}  {figures}")


def write_log(folder: Path, history: list[dict[str, float]]) -> None:
    """Write log.csv anew: after a resume it holds the epochs before the kill as well."""
    if not history:
        return
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_whole(folder / LOG_FILE, stream.getvalue())


def plot_curve(folder: Path, history: list[dict[str, float]]) -> None:
    """Draw loss and cosines by epoch into curve.svg."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], marker=".")
    left.set(title="training loss", xlabel="epoch")
    for name in (key for key in history[0] if key.endswith("cosine")):
        right.plot(epochs, [row[name] for row in history], marker=".", label=name[: -len("_cosine")])
    right.set(title="cosine with the true next vector", xlabel="epoch")
    right.legend()
    with writing(folder / CURVE_FILE) as file:
        figure.savefig(file, format="svg")
