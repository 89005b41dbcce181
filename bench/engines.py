"""Ways to run the same network on a CPU, for the micro benchmark."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Engine = Callable[[NDArray[np.float32]], Any]


class WithoutLoops:
    """The engine of a machine without the compiled loops, beside the one of this machine.

    The model room is imported a second time, as if there were no library.

    Attributes:
        predictor: An `amn.predictor.Predictor`.    features: `amn.gate.gain.features`.
    """

    def __init__(self, model: Path, bank: Path) -> None:
        ours, find = _without("amn"), importlib.util.find_spec

        def found(name: str, *package: str) -> object:
            return None if name == "amn.kernel._kernel" else find(name, *package)

        try:
            with mock.patch("importlib.util.find_spec", found):
                self.predictor = importlib.import_module("amn.predictor").Predictor.open(model, bank)
                self.features = importlib.import_module("amn.gate.gain").features
        finally:
            _without("amn")
            sys.modules.update(ours)


def _without(room: str) -> dict[str, Any]:
    """Forgets the modules of a room; gives them back by name."""
    names = [name for name in sys.modules if name == room or name.startswith(f"{room}.")]
    return {name: sys.modules.pop(name) for name in names}


def eager(model: nn.Module) -> Engine:
    """Return the modules as they are written, in float32."""

    @torch.inference_mode()
    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return model(torch.from_numpy(batch)).numpy()  # type: ignore[no-any-return]

    return run
