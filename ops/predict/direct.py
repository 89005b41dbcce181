"""The engine that computes in this process: AMN with its gate, and the first fallback."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amn.errors import FileRefused
from amn.gate.escalation import REASONS, Allowance
from amn.gate.gain import blend, features, load_calibration
from amn.gate.scores import GateScores
from amn.manifest import EncoderName, check_one_encoder
from amn.policy import BLEND, load_policy
from amn.predictor import Predictor
from ops.predict.answers import Answers, answers_of
from ops.predict.engines import Waits
from ops.predict.windows import widened
from producer import Windows
from producer.messages import BatchReply
from workers.handlers.batches import SHEDS, decide_batch


class DirectEngine:
    """Models in this process: loaded once, and so the same for all of a file; a thread for each core.

    Args:
        encoder: The encoder of the vectors that are to come; without an id where nobody knows.

    Raises:
        AmnError: A model, the bank, the policy or the calibration does not hold, or they do not fit.
    """

    def __init__(self, artifacts: Path, policy: str, encoder: EncoderName | None = None) -> None:
        self._policy = chosen = load_policy(policy)
        folder = artifacts / "gate_calibration"
        self._calibration = load_calibration(folder) if chosen.needs_calibration else None
        bank = artifacts / "reference_bank" if chosen.needs_bank else None
        self._amn = Predictor.open(artifacts / "production_model", bank)
        self._fallback = Predictor.open(artifacts / "fallback_accuracy")
        models = {one.model_id: one.checkpoint.manifest for one in (self._amn, self._fallback)}
        given = {"the data": encoder} if encoder and encoder.encoder_id else {}
        check_one_encoder({**given, **models})
        ids = self._amn.model_id, self._fallback.model_id
        if self._calibration is not None and not self._calibration.fits(*ids):
            raise FileRefused(
                f"the calibration in {folder} was fitted for {self._calibration.amn} and "
                f"{self._calibration.fallback}, and {artifacts} serves {' and '.join(ids)}"
            )
        self._scores = GateScores(chosen, self._amn.bank, self._calibration)
        torch.set_num_threads(1)  # blocks are computed side by side, each on one core
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="amn-models")
        self.models = {
            "model": self._amn.model_id,
            "bank": self._amn.bank.bank_id if self._amn.bank else "",
            "policy": chosen.policy_id(self._calibration.calibration_id if self._calibration else ""),
        }

    def fast(self, windows: Windows) -> Waits:
        """Begin AMN's answers."""
        return self._threads.submit(self._fast, windows).result

    def slow(self, windows: Windows) -> Waits:
        """Begin the final answers."""
        return self._threads.submit(self._slow, windows).result

    def _fast(self, windows: Windows) -> Answers:
        rows = contexts_of(windows)
        vectors = self._amn.forward(rows)
        columns = self._scores(rows, vectors)
        verdicts = decide_batch(self._policy, Allowance.unlimited(), (), columns)
        confidences, margins, gains = (np.asarray(column, np.float32) for column in columns)
        reply = BatchReply(
            id="direct",
            vectors=vectors,
            confidences=confidences,
            margins=margins,
            gains=gains,
            rules=REASONS,
            fired=verdicts.fired,
            sheds=SHEDS,
            shed=verdicts.shed,
            **self.models,  # type: ignore[arg-type]
        )
        return answers_of(reply)

    def _slow(self, windows: Windows) -> Answers:
        rows = contexts_of(windows)
        fast, slow = self._amn.forward(rows), self._fallback.forward(rows)
        weight, by = np.ones(len(rows)), ""
        if self._calibration is not None and self._policy.answer.rule == BLEND:
            weight, by = self._calibration.weight(features(rows, fast)), self._calibration.calibration_id
        answers = Answers(len(rows))
        answers.vectors = blend(fast, slow, weight)
        answers.served_by[:] = np.where(weight > 0, self._fallback.name, self._amn.name)
        answers.models = {"fallback": self._fallback.model_id, "calibration": by}
        return answers


def contexts_of(windows: Windows) -> NDArray[np.float32]:
    """Return contexts (n, 5, 768) as models take them; each vector is widened once."""
    return Windows(vectors=widened(windows.vectors), ends=windows.ends).contexts()
