"""Ways to run the same network on a CPU, for the micro benchmark."""

from __future__ import annotations

import io
from collections.abc import Callable

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Engine = Callable[[NDArray[np.float32]], object]


def engines(model: nn.Module, folded: Callable[[NDArray[np.float32]], torch.Tensor]) -> dict[str, Engine]:
    """By name; an engine that is not installed here is left out, and said."""
    found: dict[str, Engine] = {
        "torch as written": _eager(model),
        "folded (what workers run)": folded,
        "torch as written, bf16": _eager(_copy(model).bfloat16(), torch.bfloat16),
    }
    try:
        found["ONNX Runtime"] = _onnx(model)
    except (ImportError, RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
        click.echo(f"left out: ONNX Runtime ({str(error).splitlines()[0]})", err=True)
    return found


def _eager(model: nn.Module, dtype: torch.dtype = torch.float32) -> Engine:
    @torch.inference_mode()
    def run(batch: NDArray[np.float32]) -> object:
        return model(torch.from_numpy(batch).to(dtype)).float()

    return run


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def _onnx(model: nn.Module) -> Engine:
    import onnxruntime

    file = io.BytesIO()
    example = torch.full((2, 5, 768), 768**-0.5)
    torch.onnx.export(
        model,
        (example,),
        file,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "b"}},
        dynamo=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"x": batch})[0]
