"""Ways to run the same network on a CPU, for the micro benchmark."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Engine = Callable[[NDArray[np.float32]], Any]


def engines(model: nn.Module, folded: Engine, plain: Engine) -> dict[str, Engine]:
    """By name; an engine that is not installed here is left out, and said."""
    found: dict[str, Engine] = {
        "torch as written": eager(model),
        "folded (what workers run)": folded,
        "folded, NumPy alone": plain,
    }
    try:
        found["ONNX Runtime"] = _onnx(model)
    except (ImportError, RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
        click.echo(f"left out: ONNX Runtime ({str(error).splitlines()[0]})", err=True)
    return found


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


def _onnx(model: nn.Module) -> Engine:
    import onnxruntime

    file = io.BytesIO()
    example = torch.full((2, 5, 768), 768**-0.5)
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "b"}}}
    torch.onnx.export(model, (example,), file, dynamo=False, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"x": batch})[0]
