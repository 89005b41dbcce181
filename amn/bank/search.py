"""The search of an index: half a million references in about a tenth of a millisecond (docs/bank.md).

Every reference is filed under two of K cells. A batch of predictions (B, 768) is searched in passes:

    q @ projection -> (B, d)   @ centroids -> (B, K)     the cells, best first
    the first `probes` cells:   4-bit codes, 48 bytes a reference  -> candidates by estimate
    the `rerank` best of them:  exact cosines with the mapped vectors -> best, second, id
    where the two rules would keep the answer, or nearly: `rerank_wide` candidates more, and as many of
    the cells up to `probes_wide`

Escalating is the safe side, so the second pass goes where a miss would do harm: a second best that was
not found makes a margin look wide. The widths of both passes are chosen when the bank is built
(agreement.py). A search is one call of compiled loops (amn/kernel/cells.h), or of NumPy and faiss where
they cannot run.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.settings import Guard, IndexSettings
from amn.errors import CheckpointError
from amn.kernel.bindings import INTEGER, POINTER, REAL, Panels, Structure, address_of, call, function, panels

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
#: Best and second best cosine found, and the best one's row; each (B,).
Found = tuple[Vectors, Vectors, Ids]

#: Directions in one 4-bit code; the places that a code leaves free are zero.
WIDTH = 4
#: References a block of codes, codes a group.
_BLOCK, _CODES = 32, 16
#: So that a sum of bytes stays below 2^15.
_GROUPS_MAX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of an index, which a query is compared with first.

    Attributes:
        projection: Shape (768, d + 1): orthonormal columns, and one of zeros.
        centroids: Shape (K, d).    half: Shape (K,): half of their squared lengths.
        columns: Shape (4 G,): which projected direction stands in which place of the G codes; d for none.
    """

    projection: Vectors
    centroids: Vectors
    half: Vectors
    columns: NDArray[np.intp]


def require_faiss(what: str) -> Any:
    """The package faiss, with one thread.

    Raises:
        CheckpointError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise CheckpointError(
            f"{what} has an approximate index, which needs faiss: pip install 'amn-queue[bank]', or build "
            "the bank with --index exact"
        ) from error
    faiss.omp_set_num_threads(1)
    return faiss


_search = function("amn_search", *[POINTER] * 3, INTEGER, *[POINTER] * 4, result=ctypes.c_int)


class _Index(Structure):
    _fields_ = (
        *((name, Panels) for name in ("projection", "centroids")),
        *((name, POINTER) for name in ("half", "columns", "codebook", "codes")),
        *((name, POINTER) for name in ("start", "size", "ids", "vectors")),
        *((name, INTEGER) for name in ("cells", "groups")),
    )


class _Widths(ctypes.Structure):
    _fields_ = (
        *((name, INTEGER) for name in ("probes", "probes_wide", "rerank", "rerank_wide")),
        *((name, REAL) for name in ("within", "confidence", "margin", "reach")),
    )


class LoopSearch:
    """Both passes in compiled loops.

    They read faiss's packed codes, from a copy that is made here: so the layout is compared with what
    faiss says is in it.

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
            blocks = slice(start[cell], start[cell + 1])
            ctypes.memmove(address_of(packed[blocks]), int(lists.get_codes(cell)), packed[blocks].nbytes)
            ids[blocks].reshape(-1)[:size] = faiss.rev_swig_ptr(lists.get_ids(cell), int(size))
        if groups > _GROUPS_MAX or groups % 4 or not _as_expected(faiss, lists.packer, packed[0]):
            raise CheckpointError(
                f"an index of {groups} codes, packed as this faiss packs them, is not readable here"
            )
        codebook = faiss.vector_to_array(codes.pq.centroids).reshape(groups, _CODES, WIDTH)
        self._index = _Index().fill(
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

    def top2(self, queries: Vectors, settings: IndexSettings, guard: Guard) -> Found:
        """Searches (B, 768), float32 and contiguous.

        Raises:
            MemoryError: There was none for the candidates.
        """
        best, second = np.empty((2, len(queries)), np.float32)
        ids, twice = np.empty(len(queries), np.int64), np.empty(len(queries), np.bool_)
        wide = min(settings.probes_wide, int(self._index.cells))  # whatever a manifest says
        passes = min(settings.probes, wide), wide, settings.rerank, settings.rerank_wide
        widths = _Widths(*passes, settings.within, guard.confidence, guard.margin, guard.reach)
        if call(
            _search,
            self._index.address,
            ctypes.addressof(widths),
            queries,
            len(queries),
            best,
            second,
            ids,
            twice,
        ):
            raise MemoryError("no memory to search the reference bank")
        return best, second, ids


def _as_expected(faiss: Any, packer: Any, block: NDArray[np.uint8]) -> bool:
    """Returns True if a block holds what faiss reads from it, where the loops look for it."""
    if packer.nvec != _BLOCK:
        return False
    held = np.empty((_BLOCK, packer.code_size), np.uint8)
    packer.unpack_all(faiss.swig_ptr(block), faiss.swig_ptr(held))
    pairs = np.stack([held & 15, held >> 4], axis=2)  # (32, G / 2, 2)
    order = np.arange(_CODES).reshape(2, 8).T.ravel()  # 0, 8, 1, 9, ..
    expected = pairs[order] | pairs[order + _CODES] << 4  # (16, G / 2, 2)
    return bool((expected.transpose(1, 2, 0).ravel() == block).all())


class ArraySearch:
    """Both passes in NumPy and faiss; arguments and answers are those of `LoopSearch`."""

    def __init__(self, faiss: Any, cells: Cells, codes: Any, vectors: Vectors) -> None:
        self._faiss, self._cells, self._codes = faiss, cells, codes
        self._vectors = vectors  # lives as long as its address
        self._address = faiss.cast_integer_to_float_ptr(vectors.ctypes.data)

    def top2(self, queries: Vectors, settings: IndexSettings, guard: Guard) -> Found:
        """Searches (B, 768), float32 and contiguous."""
        self._faiss.omp_set_num_threads(1)  # the number is the calling thread's own
        flat = queries @ self._cells.projection
        cells, inner = self._nearest(flat[:, :-1], settings.probes_wide, settings.within)
        points = flat.take(self._cells.columns, axis=1)  # in the order of the codes
        probes, rerank = settings.probes, settings.rerank
        some = self._scan(points, cells[:, :probes], inner[:, :probes], rerank + settings.rerank_wide)
        scores, ids = self._refine(queries, some[:, :rerank])
        again = np.flatnonzero(guard.undecided(scores[:, 0], scores[:, 1]))
        if len(again):
            more = [ids[again], some[again, rerank:]]
            if probes < settings.probes_wide:
                rest = cells[again, probes:], inner[again, probes:]
                more.append(self._scan(points[again], *rest, settings.rerank_wide))
            scores[again], ids[again] = self._refine(queries[again], np.hstack(more))
        return scores[:, 0], scores[:, 1], ids[:, 0]

    def _nearest(self, flat: Vectors, count: int, within: float) -> tuple[Ids, Vectors]:
        """The best cells of (B, d), best first, and their dot products with the query, (B, count).

        A cell whose score is more than `within` below the best one's is replaced by -1.
        """
        scores = np.matmul(flat, self._cells.centroids.T, dtype=np.float32) - self._cells.half
        found = torch.topk(torch.from_numpy(scores), count)
        near, cells = found.values.numpy(), found.indices.numpy()
        inner: Vectors = near + self._cells.half.take(cells)
        cells[near < near[:, :1] - within] = -1
        return cells, inner

    def _scan(self, points: Vectors, cells: Ids, inner: Vectors, count: int) -> Ids:
        """The `count` best of some cells by their codes, (B, count); -1 where there are fewer."""
        self._codes.nprobe = cells.shape[1]
        cells, inner = np.ascontiguousarray(cells), np.ascontiguousarray(inner)
        found: Ids = self._codes.search_preassigned(points, count, cells, inner)[1]
        return found

    def _refine(self, queries: Vectors, ids: Ids) -> tuple[Vectors, Ids]:
        """Exact cosines of candidates: the two best (B, 2), and which ones, (B, 2)."""
        ids = np.ascontiguousarray(ids)
        scores = np.empty(ids.shape, dtype=np.float32)
        pointer = self._faiss.swig_ptr
        # An id of -1 scores minus infinity.
        self._faiss.fvec_inner_products_by_idx(
            pointer(scores), pointer(queries), self._address, pointer(ids), 768, *ids.shape
        )
        rows = np.arange(len(ids))
        found, which = np.empty((len(ids), 2), np.float32), np.empty((len(ids), 2), np.int64)
        for i in (0, 1):
            best = scores.argmax(axis=1)
            found[:, i], which[:, i] = scores[rows, best], ids[rows, best]
            if i == 0:
                scores[ids == which[:, :1]] = -2  # twice, where it is filed under two of the cells
        return found, which
