"""`python -m amn leave-out`: train without each domain in turn, judge on it.

One unseen domain is one draw. This repeats the question for every domain: does a model that
never saw it still beat the mean of the context there? The unseen domain of the main split
is judged by the main model.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from amn.data.dataset import UNSEEN_DOMAIN
from amn.data.readers import read_vectors
from amn.data.vectors import VectorSet
from amn.evaluation import metrics
from amn.files import write_whole
from amn.model import checkpoint
from amn.model.folded import fold
from amn.training.recipes import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the leave-out command."""
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder for the runs and leave_out.json")
    parser.add_argument("--model", default="amn")
    parser.add_argument("--encoder", default="", help="where the file does not name it")
    parser.add_argument("--preset", default="robust", choices=list(PRESETS))
    parser.add_argument("--epochs", default="3", help="for each domain")


def run_leave_out(options: argparse.Namespace) -> int:
    """Train what is missing, judge, write leave_out.json."""
    from amn.__main__ import main

    data = read_vectors(options.data, options.encoder)
    result: dict[str, Any] = {}
    for domain in sorted(set(data.article_domain.tolist()) - {UNSEEN_DOMAIN}):
        out = options.out / f"without_{domain}"
        if not (out / "checkpoint" / checkpoint.MANIFEST_FILE).is_file():
            command = ["train", "--model", options.model, "--preset", options.preset, "--resume"]
            command += [
                "--data",
                str(options.data),
                "--encoder",
                data.encoder_id,
                "--out",
                str(out),
                "--epochs",
                options.epochs,
            ]
            if code := main([*command, "--selection-domain", domain]):
                return code
        result[domain] = judge_domain(out / "checkpoint", data, domain)
        gain = result[domain]["gain_over_context_mean"]
        sys.stdout.write(
            f"{domain:>12}  {result[domain]['cosine']['mean']:.4f}  gain {gain['mean']:+.4f} "
            f"[{gain['low']:+.4f}, {gain['high']:+.4f}]  n {gain['n']}\n"
        )
    write_whole(options.out / "leave_out.json", json.dumps(result, indent=2) + "\n")
    return 0


def judge_domain(path: Path, data: VectorSet, domain: str) -> dict[str, Any]:
    """Cosine and paired gain on all windows of a domain that the model never saw."""
    starts = data.window_starts()
    own = np.flatnonzero(data.article_domain == domain)
    starts = starts[np.isin(data.article[starts], own)]
    articles = data.article[starts]
    cosines = metrics.window_cosines(fold(checkpoint.load(path).model), data, starts)
    mean = metrics.window_cosines(metrics.context_mean, data, starts)
    return {
        "cosine": metrics.estimate(cosines, articles).to_dict(),
        "gain_over_context_mean": metrics.estimate(cosines - mean, articles).to_dict(),
    }
