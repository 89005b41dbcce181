"""The shipped sample as a decision log: both models' answers to every window, scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amn.gate.gain import blend, features, load_calibration
from amn.policy import load_policy
from ops.gate.log import Logged
from ops.sample import Sample

_BATCH = 64


def score_sample(sample: Sample, artifacts: Path) -> list[Logged]:
    """One line a window; `domain` is "unseen" or "known"."""
    from amn.gate.scores import GateScores
    from amn.predictor import Predictor

    policy = load_policy("calibrated")
    calibration = load_calibration(artifacts / "gate_calibration")
    amn = Predictor.open(artifacts / "production_model", artifacts / "reference_bank")
    fallback = Predictor.open(artifacts / "fallback_accuracy")
    scorer = GateScores(policy, amn.bank, calibration)
    lines = []
    for first in range(0, len(sample), _BATCH):
        rows = range(first, min(first + _BATCH, len(sample)))
        contexts = np.stack([sample.context(i) for i in rows])
        truth = np.stack([sample.truth(i) for i in rows])
        fast, slow = amn.forward(contexts), fallback.predict(contexts)
        final = blend(fast, slow, calibration.weight(features(contexts, fast)))
        cosines = [np.vecdot(made, truth).tolist() for made in (fast, slow, final)]
        scores = scorer(contexts, fast)
        lines += [
            Logged(
                lane="general",
                tokens=0,
                domain="unseen" if sample.ood[first + b] else "known",
                confidence={"top1": float(scores.confidence[b])},
                margin={"distinct": float(scores.margin[b])},
                gain=float(scores.gain[b]),
                article=int(sample.article[first + b]),
                amn_cosine=cosines[0][b],
                fallback_cosine=cosines[1][b],
                final_cosine=cosines[2][b],
            )
            for b in range(len(contexts))
        ]
    return lines
