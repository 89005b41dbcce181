"""`amn predict`: files of contexts or documents to files of predictions."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.errors import RowsFailed
from ops.predict.models import ON_CHANGE
from ops.predict.settings import SHARE_DEFAULT, SHARE_MAX, PredictSettings, faults
from ops.settings import artifacts_folder, producer_settings
from producer.messages import BULK_PRIORITY, LANES, PRIORITIES

#: Without a terminal a line is printed so often.
_LINE_S = 60.0
#: A shorter stall is nothing to tell of.
_STALL_S = 5.0
#: The options of a command and of a job: sources, target, columns, and how rows are answered.
file_options = options.together(
    click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path()),
    click.option(
        "--out",
        required=True,
        type=click.Path(),
        metavar="TARGET",
        help="A folder of parts, or one .npy file.",
    ),
    click.option(
        "--encoder", default="", metavar="ID", help="Of the vectors, where the files do not say it."
    ),
    click.option("--array", default="", metavar="NAME", help="The array of vectors in an .npz of several."),
    click.option(
        "--vector", default="", metavar="NAME", help="Column of vectors. [default: context, vector, ...]"
    ),
    click.option("--document", default="doc_id", metavar="NAME", help="Column of documents."),
    click.option("--position", default="position", metavar="NAME", help="Column of positions."),
    click.option("--domain", default="domain", metavar="NAME", help="Column of domains."),
    click.option(
        "--carry", multiple=True, metavar="NAME", help="Copy this column to the target; repeatable."
    ),
    click.option("--lane", type=click.Choice(LANES), default=LANES[0], help="Of rows for a fallback."),
    click.option("--priority", type=click.Choice(PRIORITIES), default=BULK_PRIORITY, help="Level."),
    click.option(
        "--normalize", is_flag=True, help="Scale vectors to unit norm instead of failing their rows."
    ),
    click.option("--fast", is_flag=True, help="AMN's answer for every row: no fallback."),
    click.option(
        "--share", type=click.FloatRange(0, SHARE_MAX), default=SHARE_DEFAULT, help="Rows for a fallback."
    ),
    click.option("--shard", default="", metavar="I/N", help="The i-th of n shares of the row groups."),
    click.option("--failures-max", default="", metavar="N|P%", help="Failed rows that stop the run."),
    click.option("--on-stall", default="wait", metavar="wait|SECONDS", help="When no answers come."),
    click.option(
        "--on-change",
        type=click.Choice(ON_CHANGE),
        help="When other models answer: name them by part, or stop. [default: name, but stop on a resume]",
    ),
    click.option("--report-truth", is_flag=True, help="Report 1 % of the rows to the shadow evaluation."),
    click.option("--restart", is_flag=True, help="Begin anew, whatever the target holds."),
    click.option("--force", is_flag=True, help="Replace an .npy file."),
)


def settings_of(sources: tuple[str, ...], fast: bool, on_stall: str, **how: Any) -> PredictSettings:
    """Return the settings that the options say."""
    try:
        stall_s = 0.0 if on_stall == "wait" else float(on_stall)
        if on_stall != "wait" and not 0 < stall_s < math.inf:
            raise ValueError(on_stall)
    except ValueError:
        raise click.BadParameter(
            f"{on_stall!r}: use wait, or a number of seconds", param_hint="--on-stall"
        ) from None
    how |= {"share": 0.0} if fast else {}
    return PredictSettings(sources=sources, stall_s=stall_s, on_change=how.pop("on_change") or "", **how)


@click.command(short_help="Files of contexts or documents to files of predictions.")
@file_options
@click.option("--direct", is_flag=True, help="Models in this process: no server, the same answers.")
@options.policy
@options.artifacts
@options.url
@options.queue
@options.partitions
@options.as_json
def predict(
    direct: bool,
    policy: str,
    artifacts: Path | None,
    url: str | None,
    queue: str | None,
    partitions: int | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Predict the next vector of every row of .npy, .npz, Parquet, Arrow or Feather files.

    A row is a context of five vectors, or one vector of a document (columns doc_id and position, sorted).
    Then the context of a row is that row and the four before it, and the row after it is the truth that the
    summary judges by. TARGET gets a Parquet part for each row group, with a row for each row of the input.

    Broken off at any moment, the same command goes on. A file has the same answers in every run: of each
    1,024 rows the best by expected gain have a fallback's answer too.

    \b
    Examples:
      amn predict documents.parquet --out predictions/
      amn predict 'shards/*.parquet' --out predictions/ --shard 2/8 --carry url
      amn predict contexts.npy --out vectors.npy --fast
      amn predict contexts.npy --out predictions/ --direct
    """
    from ops.predict.files import open_data, predict_by_queue, predict_files

    settings = settings_of(**how)
    if direct and settings.report_truth:
        raise click.UsageError("--report-truth needs a service; with --direct nothing evaluates the truth")
    data = open_data(settings)
    rows = sum(group.rows for group in data.groups)
    console.say(f"{settings.out}: {rows:,} rows of {data.form} from {len(data.files)} file(s)", err=True)
    with View() as view:
        try:
            if direct:
                from ops.predict.direct import DirectEngine

                engine = DirectEngine(artifacts_folder(artifacts), policy, data.encoder(settings.encoder))
                summary = predict_files(settings, data, engine, view.progress)
            else:
                service = producer_settings(url, queue)
                summary = predict_by_queue(service, settings, data, view.progress, view.stalled, partitions)
        except KeyboardInterrupt:
            console.say(f"{settings.out}: what is done stays, and the same command goes on", err=True)
            raise
    show(summary, as_json)


class View:
    """The progress of a run: a bar on a terminal, a line a minute elsewhere."""

    def __init__(self, unit: str = "rows") -> None:
        self._bar, self._unit = console.Bar(unit), unit
        self._said_at_s, self._stalled_at_s = time.monotonic(), 0.0
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> View:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__(*_)

    def progress(self, progress: Any) -> None:
        """Show how far a run is."""
        note = f"{progress.faults:,} failed, {progress.escalated:,} escalated"
        self.draw("predicting", progress.done, progress.rows, note)

    def draw(self, step: str, done: int, rows: int, note: str) -> None:
        """Show rows of a step; without a terminal once a minute, with rate and time left."""
        self._bar.draw(step, done, rows, note)
        now_s = time.monotonic()
        began_s, before = self._first = self._first or (now_s, done)
        if not self._bar.visible and now_s - self._said_at_s > _LINE_S:
            self._said_at_s = now_s
            rate = (done - before) / max(now_s - began_s, 1e-9)  # a slow start is the first line too
            left = f", {(rows - done) / rate / 60:,.0f} min left" if rate else ""
            console.say(f"{step}: {done:,} of {rows:,} {self._unit}, {rate:,.0f}/s{left}, {note}", err=True)

    def stalled(self, for_s: float, why: str) -> None:
        """Say once in a while that no answers come."""
        if for_s > _STALL_S and time.monotonic() - self._stalled_at_s > 2 * _STALL_S:
            self._stalled_at_s = time.monotonic()
            console.say(f"no answers for {for_s:.0f} s, waiting: {why}", err=True)


def show(summary: dict[str, Any], as_json: bool) -> None:
    """Print a summary; rows that failed for another reason than a short document are an error."""
    console.answer(as_json, summary, _show)
    if failed := faults(summary["failures"]).total():
        raise RowsFailed(
            f"{failed:,} of {summary['rows']:,} rows have no answer; error_code and error_message in "
            f"{summary['out']} say why"
        )


def _show(summary: dict[str, Any]) -> None:
    out = console.err()
    again = f", {summary['resumed_rows']:,} of an earlier run" if summary["resumed_rows"] else ""
    out.print(
        f"{summary['out']}: {summary['answered']:,} of {summary['rows']:,} rows answered{again}, "
        f"{summary['escalated']:,} with a fallback's help, in {summary['elapsed_s']:.1f} s, "
        f"{summary['rows_per_s']:,.0f} rows per second"
    )
    for code, count in summary["failures"].items():
        out.print(f"  {count:,} rows: {code}")
    if truths := summary.get("truths"):
        lost = ", ".join(f"{count:,} {code}" for code, count in truths["lost"].items())
        out.print(
            f"  truths of {truths['reported']:,} of {truths['sampled']:,} sampled rows reported"
            + (f"; lost: {lost}" if lost else "")
        )
    if len(sets := summary.get("answers_of", [])) > 1:
        out.print("  answers of different models, which _manifest.json names by part:")
    for one in sets if len(sets) > 1 else ():
        ids = ", ".join(f"{name} {value}" for name, value in one["models"].items())
        out.print(f"  {one['parts']:,} parts of {one['rows']:,} rows: {ids}")
    if summary["cosines"]:
        from ops.predict.report import shown

        heads = (
            "cosine with the truth",
            "rows>",
            "documents>",
            "AMN>",
            "final>",
            "mean>",
            "last>",
            "final, 95 %>",
        )
        out.print(console.DataTable(*heads).filled(shown(summary["cosines"])))
