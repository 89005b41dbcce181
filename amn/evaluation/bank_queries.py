"""Queries to measure a bank with: predictions for texts that it does not hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import FileRows
from amn.data.dataset import split_by_article
from amn.data.readers import read_vectors
from amn.data.vectors import Index, Vectors, VectorSet, chunks
from amn.errors import DataError
from amn.manifest import check_one_encoder
from amn.predictor import Predictor

QUERIES = 4096
_CHUNK = 256


def held_out_predictions(path: Path, model: Predictor, count: int = QUERIES) -> Vectors:
    """At most `count` predictions, evenly spaced over what the file has.

    Args:
        path: Contexts (n, 5, 768) as `.npy`; or vectors with articles, as `amn train --data`
            takes them: then the contexts are those of the validation side.

    Raises:
        DataError: It cannot be read, or is neither.
    """
    if path.suffix != ".npy":
        data = read_vectors(path, model.checkpoint.manifest.encoder_id)
        check_one_encoder({model.model_id: model.checkpoint.manifest, data.source: data})
        unseen = model.checkpoint.manifest.unseen_domain
        known = unseen if unseen in data.article_domain else ""
        return predictions(model, data, split_by_article(data, unseen_domain=known).validation, count)
    contexts = FileRows(path)
    if contexts.ndim != 3 or contexts.shape[1:] != (5, 768) or not len(contexts):
        raise DataError(f"{path} has shape {contexts.shape}; expected contexts (n, 5, 768)")
    drawn = _spaced(len(contexts), count)
    return np.concatenate([model.predict(contexts[drawn[rows]]) for rows in chunks(len(drawn), _CHUNK)])


def predictions(model: Predictor, data: VectorSet, starts: Index, count: int) -> Vectors:
    """Predictions (n, 768) for windows that begin at these rows, evenly spaced: all articles have a part."""
    starts = starts[_spaced(len(starts), count)]
    parts = [model.predict(data.windows(starts[rows])[:, :5]) for rows in chunks(len(starts), _CHUNK)]
    return np.concatenate(parts)


def _spaced(have: int, count: int) -> NDArray[np.intp]:
    return np.linspace(0, have - 1, min(count, have)).astype(np.intp)
