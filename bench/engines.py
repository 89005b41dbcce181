"""Ways to run the same network on a CPU, for the micro benchmark."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Engine = Callable[[NDArray[np.float32]], Any]
#: Formats of half the width.
HALVES = (torch.float16, torch.bfloat16)


def engines(model: nn.Module, folded: Engine) -> dict[str, Engine]:
    """By name; an engine that is not installed here is left out, and said."""
    found: dict[str, Engine] = {
        "torch as written": eager(model),
        "folded (what workers run)": folded,
        **{f"torch as written, {str(dtype).removeprefix('torch.')}": eager(model, dtype) for dtype in HALVES},
    }
    try:
        found["ONNX Runtime"] = _onnx(model)
    except (ImportError, RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
        click.echo(f"left out: ONNX Runtime ({str(error).splitlines()[0]})", err=True)
    return found


def eager(model: nn.Module, dtype: torch.dtype = torch.float32) -> Engine:
    """The modules as they are written, on a copy of the weights in `dtype`; the answer is float32."""
    own = copy.deepcopy(model).to(dtype)

    @torch.inference_mode()
    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return own(torch.from_numpy(batch).to(dtype)).float().numpy()  # type: ignore[no-any-return]

    return run


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
