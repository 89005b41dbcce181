"""Checkpoints: weights in safetensors beside a manifest and golden vectors.

    <folder>/model.safetensors    the weights, float32 or float16, nothing else
    <folder>/golden.safetensors   inputs (4, 5, 768) and the outputs (4, 768) they must give
    <folder>/manifest.json        layout, config, hashes, encoder, training, metrics

A strict load of the keys proves little: networks with the same names and shapes and
another forward pass exist. `load` therefore runs the golden inputs, and refuses when any
output differs by more than 1e-5.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from amn import manifest as manifests
from amn.config import (
    CONTEXT_LENGTH,
    PARAMETERS,
    UNSEEN_DOMAIN,
    VECTOR_DIM,
    ModelConfig,
    model_config_from_dict,
)
from amn.errors import CheckpointError, ConfigError
from amn.files import write_whole
from amn.manifest import check_file, files_sha256, write_manifest
from amn.model.layouts import build
from amn.model.network import count_parameters
from amn.model.retrieval import RetrievalAMN

WEIGHTS_FILE = "model.safetensors"
GOLDEN_FILE = "golden.safetensors"
MANIFEST_VERSION = 1
GOLDEN_COUNT = 4
GOLDEN_TOLERANCE = 1e-5
_REMEDY = "fetch the checkpoint again"
STORAGE = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of a checkpoint; everything in it is checked by `load`."""

    name: str
    layout: str
    config: dict[str, Any]
    parameters: int
    #: Type in which the weights are stored; they are always computed with in float32.
    storage: str
    sha256: str
    golden_sha256: str
    encoder_id: str
    created_utc: str
    training: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    notes: list[str] = dataclasses.field(default_factory=list)
    version: int = MANIFEST_VERSION

    @property
    def model_id(self) -> str:
        """Short name that every answer carries: `<name>@<first 12 hex of the hash>`."""
        return f"{self.name}@{self.sha256[:12]}"

    @property
    def encoder_sha256(self) -> str:
        """Hash of the files of its encoder; "" where nobody knew it when it was trained."""
        return str(self.data.get("encoder_sha256", ""))

    @property
    def unseen_domain(self) -> str:
        """The domain that was kept out of its training; of an imported model the default."""
        return str(self.training.get("unseen_domain", UNSEEN_DOMAIN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified model in eval mode, with its manifest and the folder it came from."""

    model: nn.Module
    manifest: Manifest
    path: Path


def load(path: Path) -> Checkpoint:
    """Load a checkpoint folder (or a link to one), and verify everything it claims.

    Raises:
        CheckpointError: files are missing or altered, keys or counts are of another layout,
            or the golden outputs are not reproduced within 1e-5.
    """
    folder = Path(path).resolve()
    manifest = read_manifest(folder)
    check_file(folder / WEIGHTS_FILE, manifest.sha256, _REMEDY)
    check_file(folder / GOLDEN_FILE, manifest.golden_sha256, _REMEDY)
    try:
        model = build(model_config_from_dict(manifest.config)).eval()
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    load_weights(model, _read_tensors(folder / WEIGHTS_FILE), origin=str(folder / WEIGHTS_FILE))
    model.requires_grad_(False)
    check_golden(model, _read_tensors(folder / GOLDEN_FILE), origin=str(folder))
    return Checkpoint(model=model, manifest=manifest, path=folder)


def save(
    model: nn.Module,
    folder: Path,
    *,
    name: str,
    encoder_id: str,
    records: Mapping[str, Any],
    storage: str = "float32",
) -> Manifest:
    """Write a checkpoint folder; the manifest comes last, so half a folder is no checkpoint.

    Args:
        model: a network made by `amn.model.layouts.build`.
        folder: created if missing; an existing checkpoint in it is replaced.
        name: short name for `model_id`, e.g. "amn".
        records: the parts `training`, `data`, `metrics` and `notes` of the manifest, where there are any.
        storage: "float32", or "float16" to halve the file.

    Raises:
        CheckpointError: the storage type is unknown.
    """
    if storage not in STORAGE:
        raise CheckpointError(f"storage is {storage!r}; choose one of {', '.join(STORAGE)}")
    config: ModelConfig = model.config  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        key: (value.to(STORAGE[storage]) if value.is_floating_point() else value).cpu().contiguous().clone()
        for key, value in model.state_dict().items()
    }
    write_whole(folder / WEIGHTS_FILE, to_bytes(weights))
    # Golden outputs are those of the stored weights: rounding to 16 bit changes them.
    stored = build(config).eval()
    load_weights(stored, weights, origin=name)
    with torch.inference_mode():
        inputs = golden_inputs(stored)
        outputs = stored(inputs).contiguous().clone()
    write_whole(folder / GOLDEN_FILE, to_bytes({"inputs": inputs, "outputs": outputs}))
    manifest = Manifest(
        name=name,
        layout=config.layout,
        config=config.to_dict(),
        parameters=count_parameters(stored),
        storage=storage,
        sha256=files_sha256([folder / WEIGHTS_FILE]),
        golden_sha256=files_sha256([folder / GOLDEN_FILE]),
        encoder_id=encoder_id,
        created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{"training": {}, "data": {}, "metrics": {}, **records},
    )
    write_manifest(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        CheckpointError: it is missing, not JSON, of another version or layout, or lacks fields.
    """
    return manifests.read_manifest(folder, _manifest, artifact="checkpoint", remedy=_REMEDY)


def _manifest(version: int | None = None, **values: Any) -> Manifest:
    if version != MANIFEST_VERSION:
        raise CheckpointError(
            f"a checkpoint of version {version}, this code reads {MANIFEST_VERSION}; "
            "use the version of amn-queue that wrote it"
        )
    made = Manifest(**values)
    if made.layout not in PARAMETERS:
        raise CheckpointError(f"unknown layout {made.layout!r}; known are {', '.join(PARAMETERS)}")
    configured = made.config.get("layout")
    if made.parameters != PARAMETERS[made.layout] or configured != made.layout:
        raise CheckpointError(
            f"the manifest says {made.parameters:,} parameters and a config of layout {configured}, layout "
            f"{made.layout} has {PARAMETERS[made.layout]:,}; {_REMEDY}"
        )
    return made


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {_REMEDY}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy weights into a model whose keys and shapes they must match exactly.

    Raises:
        CheckpointError: keys are missing or unknown, a shape differs, or a number is not finite.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value.float()).all():  # as it is served
            raise CheckpointError(f"{origin}: {name} holds NaN or infinity; do not use it")
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{origin} does not fit layout {model.config.layout}: {shorten(str(error), 400)}; name the "
            "layout that these weights were trained in"
        ) from error


def golden_inputs(model: nn.Module | None = None) -> Tensor:
    """Makes (4, 5, 768) contexts that are equal everywhere: two loose, one coherent, one repetitive.

    A model with a memory gives four more, which its memory knows.
    """
    draw = torch.Generator().manual_seed(20251023)
    noise = torch.randn(GOLDEN_COUNT, CONTEXT_LENGTH, VECTOR_DIM, generator=draw)
    topic = torch.randn(GOLDEN_COUNT, 1, VECTOR_DIM, generator=draw)
    share = torch.tensor([0.0, 0.7, 1.0, 3.0]).view(-1, 1, 1)
    made = nn.functional.normalize(noise + share * topic, dim=-1)
    return torch.cat([made, model.examples()]) if isinstance(model, RetrievalAMN) else made


@torch.inference_mode()
def check_golden(model: nn.Module, golden: Mapping[str, Tensor], *, origin: str) -> None:
    """Run the golden inputs, and refuse a model that answers otherwise than it did.

    Raises:
        CheckpointError: outputs differ by more than 1e-5, or the golden file is incomplete.
    """
    count = golden["outputs"].numel() // VECTOR_DIM if "outputs" in golden else 0
    expected = {"inputs": [count, CONTEXT_LENGTH, VECTOR_DIM], "outputs": [count, VECTOR_DIM]}
    found = {name: list(value.shape) for name, value in golden.items() if value.dtype == torch.float32}
    if not count or found != expected:
        raise CheckpointError(f"{origin}: golden vectors are incomplete; {_REMEDY}")
    difference = (model(golden["inputs"]) - golden["outputs"]).abs().max().item()
    if not difference <= GOLDEN_TOLERANCE:
        raise CheckpointError(
            f"{origin}: golden outputs differ by {difference:.2e} (allowed {GOLDEN_TOLERANCE}); the weights "
            f"are of another network than layout {model.config.layout}, or this device computes wrongly"
        )
