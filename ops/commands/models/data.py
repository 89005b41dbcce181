"""`amn data`: from packages to text, from text to vectors in reading order, and from vectors to one set."""

from __future__ import annotations

from pathlib import Path
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
    console.answer(as_json, summary, _show)
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
    if summary["cut_rows"]:
        console.say(
            f"WARNING: {summary['cut_rows']:,} chunks have more tokens than the encoder takes, and it does "
            "not see their ends",
            err=True,
        )
    for one in summary["refused"][:_NAMED]:
        console.say(f"  {one['code']}: {one['name']}: {one['message']}", err=True)


@data.command(short_help="The larger corpus: packages of Debian 12 to documents.")
@options.out("A folder; what an earlier run made of it stays.")
@click.option(
    "--packages", type=common.FILE, help="Domains and packages, as TOML. [default: those of docs/models.md]"
)
def corpus(out: Path, packages: Path | None) -> None:
    """Download documentation packages of Debian 12 and an encoder, and write their prose as documents.

    Needs apt-get and dpkg-deb, no root, and a few gigabytes in the folder. `amn data encode` makes vectors of
    its documents, and `amn data join` a set to train on. `make corpus` runs all three.

    \b
    Example: amn data corpus --out runs/corpus
    """
    from ops.corpus.build import PACKAGES, build

    with console.Bar("parts") as bar:
        made = build(out, packages or PACKAGES, bar.draw)
    console.say(f"{out}: {sum(made['chunks'].values()):,} chunks of {len(made['chunks'])} domains", err=True)


@data.command(short_help="Sets of vectors as one; all but the first only to train on.")
@click.argument("first", type=options.path)
@click.argument("others", metavar="OTHER...", nargs=-1, required=True, type=options.path)
@options.out("A new folder of .npy.")
@options.encoder
@click.option(
    "--left-out", multiple=True, metavar="DOMAIN", help="Of the others; nothing is trained on it; repeatable."
)
def join(first: Path, others: tuple[Path, ...], out: Path, encoder: str, left_out: tuple[str, ...]) -> None:
    """Join sets of vectors of one encoder. FIRST is split as it is without the others, which are trained on.

    \b
    Example: amn data join text768.npz runs/corpus/vectors --left-out crawl --out runs/joined
    """
    from amn.data.join import join as write_joined
    from amn.data.readers import read_vectors

    write_joined(read_vectors(first, encoder), [read_vectors(one, encoder) for one in others], left_out, out)
