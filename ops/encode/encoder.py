"""An encoder: a folder of sentence-transformers on this machine, named by a hash of its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn.config import ENCODER_ID, VECTOR_DIM
from amn.data.vectors import unit
from amn.errors import FileRefused

#: Files that decide the vectors; cards, scripts and folders of other runtimes do not.
_DECIDE = (".json", ".txt", ".model", ".safetensors", ".bin")
_OTHER_RUNTIMES = {"onnx", "openvino"}
_OURS = "sentence_transformers."
#: The encoder of the shipped models has had a name from before there were hashes.
SHIPPED_SHA256 = "8d25d3b4d58dc83dbfa411ceb039c96815c6604289345ada9dad792e80a15a08"
_KNOWN = {SHIPPED_SHA256: ENCODER_ID}
_BATCH = 32
#: No network, no bars of others, and no threads that wait for one another.
_ENVIRONMENT = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")


class Encoder:
    """A model that turns texts into unit vectors.

    Attributes:
        id: Its name in files and manifests: by the hash, or the one that was given.
        sha256: The hash of the files that decide the vectors.
    """

    def __init__(self, folder: Path, encoder_id: str = "", precision: str = "float32") -> None:
        """Loads the model; nothing is downloaded, and no code of the folder runs.

        Raises:
            FileRefused: It is no such folder, asks for other code, or its vectors are not 768 wide.
        """
        _check_modules(folder)
        self.sha256 = hash_of(folder)
        self.id = encoder_id or _KNOWN.get(self.sha256) or f"sentence-transformers@{self.sha256[:12]}"
        os.environ |= _ENVIRONMENT
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise FileRefused(f"{error.name} is missing; pip install 'amn-queue[data]' brings it") from error
        try:
            self._model = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": precision}
            )
            width = self.encode(["a"]).shape[1]
        except Exception as error:  # a damaged folder raises almost anything
            why = " ".join(str(error).split())
            raise FileRefused(f"{folder} cannot be loaded as an encoder: {why}") from error
        if width != VECTOR_DIM:
            raise FileRefused(
                f"{folder} makes vectors of {width} numbers, and models here take {VECTOR_DIM}; use another "
                f"encoder, such as {ENCODER_ID.partition('/')[0]}"
            )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors (N, 768); one depends on its text, and beyond rounding on nothing else."""
        found = self._model.encode(list(texts), batch_size=_BATCH, show_progress_bar=False)
        return unit(np.asarray(found, dtype=np.float32))

    def cut(self, texts: Sequence[str]) -> int:
        """Return how many texts have more tokens than the encoder takes, and whose ends it does not see."""
        most = self._model.max_seq_length or 0
        long = [text for text in texts if len(text.encode()) > most - 2]  # no token is shorter than a byte
        if not most or not long:
            return 0
        tokens = self._model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
        return sum(len(one) > most for one in tokens)


def _check_modules(folder: Path) -> None:
    """Refuse a folder that is none of sentence-transformers, or names classes of somebody else."""
    path = folder / "modules.json"
    try:
        kinds = [str(module["type"]) for module in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = getattr(error, "strerror", None) or repr(error)
        raise FileRefused(f"{folder} is no folder of sentence-transformers: {path.name}: {why}") from error
    if others := [kind for kind in kinds if not kind.startswith(_OURS)]:
        raise FileRefused(f"{path} asks for {others[0]}, which is not of sentence-transformers: not loaded")


def hash_of(folder: Path) -> str:
    """Return the hash of the names and contents of all files that decide the vectors."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        inside = path.relative_to(folder)
        if path.suffix in _DECIDE and path.is_file() and not _OTHER_RUNTIMES & set(inside.parts):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{inside.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
