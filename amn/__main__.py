"""`python -m amn <command>`: train, evaluate, and look after checkpoints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from amn.errors import AmnError
from amn.output import drop_output, plain, ready_streams

Command = Callable[[argparse.Namespace], int]


def parser_of_commands() -> argparse.ArgumentParser:
    """All commands; heavy imports wait until one is chosen."""
    from amn.calibration import command as calibrate
    from amn.data import sample
    from amn.evaluation import card, evaluate, importing, promotion, ratio, slices_fit
    from amn.training import leaveout, reproduce, run

    parser = argparse.ArgumentParser(prog="python -m amn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, text: str, fill: Callable[[argparse.ArgumentParser], None], act: Command):  # type: ignore[no-untyped-def]
        sub = commands.add_parser(name, help=text, description=text)
        fill(sub)
        sub.set_defaults(act=act)

    add("train", "Train a model on vectors in reading order.", run.add_arguments, run.run_train)
    add(
        "evaluate",
        "Judge checkpoints and baselines on the same windows; JSON and one HTML page.",
        evaluate.add_arguments,
        evaluate.run_evaluate,
    )
    add(
        "ratio",
        "How many times longer the slower of two models takes, by calls in turn.",
        ratio.add_arguments,
        ratio.run_ratio,
    )
    add(
        "leave-out",
        "Train without each domain in turn and judge on it.",
        leaveout.add_arguments,
        leaveout.run_leave_out,
    )
    add(
        "reproduce",
        "Train every model and print the table of docs/models.md.",
        reproduce.add_arguments,
        reproduce.run_reproduce,
    )
    add(
        "calibrate",
        "Fit the gate's score and blend on held-out articles, and show what they are worth.",
        calibrate.add_arguments,
        calibrate.run_calibrate,
    )
    add(
        "card",
        "Write a model card from a manifest and an evaluation.",
        card.add_arguments,
        card.run_card,
    )
    add(
        "promote",
        "Point a production link at a checkpoint that passes the gates.",
        promotion.add_arguments,
        promotion.run_promote,
    )
    add(
        "rollback",
        "Point a production link back at its earlier target.",
        promotion.add_rollback_arguments,
        promotion.run_rollback,
    )
    add(
        "import-published",
        "Turn a published .pt file into a verified checkpoint folder.",
        importing.add_arguments,
        importing.run_import,
    )
    add(
        "sample",
        "Write the small file of held-out sequences that ships.",
        sample.add_arguments,
        sample.run_sample,
    )
    add(
        "slices",
        "Fit the OOD score's references and thresholds, and judge them.",
        slices_fit.add_arguments,
        slices_fit.run_slices,
    )
    add(
        "training-vectors",
        "Write the training side's vectors, the source of a reference bank.",
        sample.add_training_arguments,
        sample.run_training_vectors,
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors are one line that says what to do."""
    options = parser_of_commands().parse_args(arguments)
    ready_streams()
    try:
        code = int(options.act(options))
        sys.stdout.flush()
    except AmnError as error:
        sys.stderr.write(f"error [{error.code}]: {plain(error)}\n")
        return 2
    except BrokenPipeError:
        drop_output()
        return 1
    except OSError as error:
        sys.stderr.write(f"error [{type(error).__name__}]: {plain(error)}\n")
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
