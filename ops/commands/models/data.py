"""`amn data encode`: from files of text to vectors in reading order."""

from __future__ import annotations

from typing import Any

import click

from ops import console
from ops.commands import options as common
from ops.commands.models import options
from ops.commands.predict import View
from ops.errors import RowsFailed

#: So many refused documents are named here; the manifest names all.
_NAMED = 20


@click.group(short_help="Text to vectors.")
def data() -> None:
    """Make vectors of your own text: what models are trained on, and what `amn predict` reads."""


@data.command(short_help="Files of text to vectors in reading order.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path())
@click.option("--encoder", required=True, type=options.path, help="A folder of sentence-transformers.")
@click.option("--out", required=True, metavar="VECTORS", type=click.Path(), help="A folder of Parquet parts.")
@click.option("--encoder-id", default="", metavar="ID", help="Its name, instead of the hash of its files.")
@click.option("--dtype", default="float32", type=click.Choice(["float32", "float16"]), help="Of the vectors.")
@click.option(
    "--precision",
    default="float32",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the computation; bfloat16 is faster where the processor knows it.",
)
@click.option(
    "--keep", multiple=True, type=click.Choice(["text", "offsets"]), help="More columns; repeatable."
)
@click.option("--text", default="text", metavar="NAME", help="Field or column of texts.")
@click.option("--document", default="doc_id", metavar="NAME", help="Field or column of ids.")
@click.option("--domain", default="domain", metavar="NAME", help="Field or column of domains.")
@click.option("--charset", default="utf-8", metavar="NAME", help="Of text files that say nothing else.")
@click.option("--restart", is_flag=True, help="Begin anew, whatever the target holds.")
@common.as_json
def encode(as_json: bool, **chosen: Any) -> None:
    """Cut .txt, .md, .html, .jsonl and .parquet files of text into chunks, and encode those.

    A chunk has 18 to 60 words and ends with a sentence, where there is one. VECTORS gets a row for each, with
    doc_id, position, domain, words and vector. A file of text is one document, whose id is its path and whose
    domain is its folder; of JSONL each line is a document, of Parquet each row.

    Broken off at any moment, the same command goes on. What is no text is named, and the rest is encoded.

    \b
    Examples:
      amn data encode docs/ --encoder all-mpnet-base-v2/ --out vectors/
      amn data encode 'dump/*.jsonl' --text body --encoder all-mpnet-base-v2/ --out vectors/ --dtype float16
    """
    from ops.encode.documents import EMPTY, SHORT
    from ops.encode.run import EncodeRun
    from ops.encode.settings import EncodeSettings

    settings = EncodeSettings(**chosen)
    with View("chunks") as view:
        try:
            summary = EncodeRun(
                settings,
                lambda now: view.draw(now.step, now.done, now.rows, f"{now.codes.total():,} refused"),
            ).work()
        except KeyboardInterrupt:
            console.say(f"{settings.out}: what is done stays, and the same command goes on", err=True)
            raise
    if as_json:
        console.say_json(summary)
    else:
        _show(summary)
    if faults := sum(count for code, count in summary["codes"].items() if code not in (EMPTY, SHORT)):
        raise RowsFailed(
            f"{faults:,} of {summary['documents']:,} documents have no vectors; _manifest.json in "
            f"{settings.out} says which and why"
        )


def _show(summary: dict[str, Any]) -> None:
    again = f", {summary['resumed_rows']:,} of an earlier run" if summary["resumed_rows"] else ""
    console.say(
        f"{summary['out']}: {summary['rows']:,} chunks of {summary['documents']:,} documents{again}, by "
        f"{summary['encoder']} in {summary['elapsed_s']:.1f} s, {summary['rows_per_s']:,.1f} chunks a second",
        err=True,
    )
    for one in summary["refused"][:_NAMED]:
        console.say(f"  {one['code']}: {one['name']}: {one['message']}", err=True)
