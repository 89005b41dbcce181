"""`python -m amn <command>`: train, evaluate, and look after checkpoints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from amn.errors import AmnError

Command = Callable[[argparse.Namespace], int]


def parser_of_commands() -> argparse.ArgumentParser:
    """All commands; heavy imports wait until one is chosen."""
    from amn import run, sample

    parser = argparse.ArgumentParser(prog="python -m amn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, text: str, fill: Callable[[argparse.ArgumentParser], None], act: Command):  # type: ignore[no-untyped-def]
        sub = commands.add_parser(name, help=text, description=text)
        fill(sub)
        sub.set_defaults(act=act)

    add("train", "Train a model on vectors in reading order.", run.add_arguments, run.run_train)
    add(
        "sample",
        "Write the small file of held-out sequences that ships.",
        sample.add_arguments,
        sample.run_sample,
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors are one line that says what to do."""
    options = parser_of_commands().parse_args(arguments)
    try:
        return int(options.act(options))
    except AmnError as error:
        sys.stderr.write(f"error [{error.code}]: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
