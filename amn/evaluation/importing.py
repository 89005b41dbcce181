"""Import of checkpoints in the published `.pt` format.

The file is a dict with `model_type`, `model_state_dict` and records of the run; it is read with
weights_only, so nothing in it is executed.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from amn.config import Layout, ModelConfig
from amn.errors import CheckpointError
from amn.model import checkpoint
from amn.model.layouts import build

LAYOUT_OF_TYPE: dict[str, Layout] = {"amn": "published", "gru": "gru", "transformer": "transformer"}
WARNING = (
    "imported by key names: a strict fit of names, shapes and count does not prove the class "
    "that these weights were trained in; compare `amn evaluate` with the figures you expect"
)


def import_published(path: Path, folder: Path, *, encoder_id: str) -> checkpoint.Manifest:
    """Turns a published `.pt` file, whose keys must fit, into a checkpoint folder with golden vectors."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give a published best_model.pt") from error
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a plain tensor file ({str(error).splitlines()[0]}); it is damaged, "
            "or needs pickle, which is never run here. Save its model_state_dict again"
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("model_state_dict"), dict):
        raise CheckpointError(f"{path} holds no model_state_dict; give a published best_model.pt")
    kind = values.get("model_type")
    if kind not in LAYOUT_OF_TYPE:
        raise CheckpointError(f"{path}: model_type is {kind!r}; known are {', '.join(LAYOUT_OF_TYPE)}")
    model = build(ModelConfig(layout=LAYOUT_OF_TYPE[kind])).eval()
    checkpoint.load_weights(model, values["model_state_dict"], origin=str(path))
    training = {name: values[name] for name in ("epoch", "val_loss", "val_cosine") if name in values}
    records = {
        "training": training | {"imported_from": path.name},
        "data": {"note": "unknown: the published file does not say"},
        "notes": [WARNING],
    }
    return checkpoint.save(model, folder, name=kind, encoder_id=encoder_id, records=records)
