"""The search of a large bank in compiled loops (amn/kernel/cells.h), given what faiss has stored.

One call makes both passes of a batch. It reads faiss's packed codes, from a copy that it makes: so the
layout is compared with what faiss says is in it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.bank.index_cells import WIDTH, Cells
from amn.bank.settings import Guard, IndexSettings
from amn.errors import CheckpointError
from amn.kernel.bindings import INTEGER, LIBRARY, POINTER, REAL, Panels, Structure, address_of, panels

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Rows = NDArray[np.bool_]

#: References a block of codes, codes a group.
_BLOCK, _CODES = 32, 16
#: So that a sum of bytes stays below 2^15.
_GROUPS_MAX = 128


class _Index(Structure):
    _fields_ = (
        ("projection", Panels),
        ("centroids", Panels),
        *((name, POINTER) for name in ("half", "columns", "codebook", "codes")),
        *((name, POINTER) for name in ("start", "size", "ids", "vectors")),
        ("cells", INTEGER),
        ("groups", INTEGER),
    )


class _Widths(ctypes.Structure):
    _fields_ = (
        *((name, INTEGER) for name in ("probes", "probes_wide", "rerank", "rerank_wide")),
        *((name, REAL) for name in ("within", "confidence", "margin", "reach")),
    )


class LoopSearch:
    """Both passes of a search.

    Args:
        faiss: The package.
        codes: An `IndexIVFPQFastScan`; not needed afterwards.
        vectors: Shape (N, 768), float32.

    Raises:
        CheckpointError: The codes are laid out otherwise than these loops expect.
    """

    def __init__(self, faiss: Any, cells: Cells, codes: Any, vectors: Vectors) -> None:
        lists = faiss.downcast_InvertedLists(codes.invlists)
        sizes = np.array([lists.list_size(cell) for cell in range(lists.nlist)])
        start = np.concatenate([[0], np.cumsum(-(-sizes // _BLOCK))])
        groups, d = codes.pq.M, cells.centroids.shape[1]
        packed = np.empty((start[-1], _CODES * groups), np.uint8)
        ids = np.zeros((start[-1], _BLOCK), np.int32)
        for cell, size in enumerate(sizes):
            blocks = packed[start[cell] : start[cell + 1]]
            ctypes.memmove(address_of(blocks), int(lists.get_codes(cell)), blocks.nbytes)
            ids[start[cell] : start[cell + 1]].reshape(-1)[:size] = faiss.rev_swig_ptr(
                lists.get_ids(cell), int(size)
            )
        if groups > _GROUPS_MAX or groups % 4 or not _as_expected(faiss, lists.packer, packed[0]):
            raise CheckpointError(
                f"an index of {groups} codes, packed as this faiss packs them, is not readable here"
            )
        codebook = faiss.vector_to_array(codes.pq.centroids).reshape(groups, _CODES, WIDTH)
        self._index = _Index()
        self._index.fill(
            projection=panels(cells.projection[:, :d].T),
            centroids=panels(cells.centroids),
            half=cells.half,
            columns=np.where(cells.columns < d, cells.columns, -1).astype(np.int64),
            codebook=np.ascontiguousarray(codebook.transpose(0, 2, 1)),
            codes=packed,
            start=start.astype(np.int64),
            size=sizes.astype(np.int64),
            ids=ids,
            vectors=vectors,
            cells=len(cells.centroids),
            groups=groups,
        )

    def top2(
        self, queries: Vectors, settings: IndexSettings, guard: Guard
    ) -> tuple[Vectors, Vectors, Ids, Rows]:
        """Works like `ArraySearch.top2`.

        Raises:
            MemoryError: There was none for the candidates.
        """
        best, second = np.empty((2, len(queries)), np.float32)
        ids, twice = np.empty(len(queries), np.int64), np.empty(len(queries), np.bool_)
        answers = (address_of(array) for array in (best, second, ids, twice))
        index, widths = ctypes.addressof(self._index), self._widths(settings, guard)
        if _search(index, ctypes.addressof(widths), address_of(queries), len(queries), *answers):
            raise MemoryError("no memory to search the reference bank")
        return best, second, ids, twice

    def _widths(self, settings: IndexSettings, guard: Guard) -> _Widths:
        cells = int(self._index.cells)  # the loops look at no more than there are
        wide = min(settings.probes_wide, cells)
        return _Widths(
            probes=min(settings.probes, wide),
            probes_wide=wide,
            rerank=settings.rerank,
            rerank_wide=settings.rerank_wide,
            within=settings.within,
            confidence=guard.confidence,
            margin=guard.margin,
            reach=guard.reach,
        )


def _as_expected(faiss: Any, packer: Any, block: NDArray[np.uint8]) -> bool:
    """Says whether a block holds what faiss reads from it, where the loops look for it."""
    if packer.nvec != _BLOCK:
        return False
    held = np.empty((_BLOCK, packer.code_size), np.uint8)
    packer.unpack_all(faiss.swig_ptr(block), faiss.swig_ptr(held))
    pairs = np.stack([held & 15, held >> 4], axis=2)  # (32, G / 2, 2)
    order = np.arange(_CODES).reshape(2, 8).T.ravel()  # 0, 8, 1, 9, ..
    expected = pairs[order] | pairs[order + _CODES] << 4  # (16, G / 2, 2)
    return bool((expected.transpose(1, 2, 0).ravel() == block).all())


if LIBRARY is not None:
    _search = LIBRARY.amn_search
    _search.argtypes = (POINTER, POINTER, POINTER, INTEGER, POINTER, POINTER, POINTER, POINTER)
    _search.restype = ctypes.c_int
