"""The memory of the retrieval layout: filed from the training windows, weighed on the validation articles.

The weights of the neighbours and the share of what followed them are fitted to two cases at once: with the
whole memory, and with one that lacks the domain of each context, as if the context came from an unseen one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn.bank.cells import fit_centroids
from amn.data.dataset import Split
from amn.data.vectors import Index, Vectors, VectorSet, chunks
from amn.errors import DataError
from amn.model.folded import fold
from amn.model.memory import CELL_ENTRIES, KEY_DIM, NEIGHBOURS, Entries, pack
from amn.model.retrieval import RetrievalAMN
from amn.training.train import Tick

#: Windows that directions, steps and cells are fitted on, and those that weigh.
_SAMPLE, _WEIGHED = 40_000, 4_000
_ROUNDS = 60
#: The case of an unknown domain weighs twice: a fallback should not be below AMN there.
_WEIGHTS = (1.0, 2.0)
#: Shares to begin with: where a large one harms, the first step can lead to none, and nothing pulls back.
_SHARES, _LEAST = (0.2, 0.02), 1e-5
#: Gains are thousandths; the optimizer ends where gradients are below 1e-7.
_SCALE = 1000.0
#: Five bits are enough, and an archive of them is half as large as of eight.
_CODE_MAX = 15


def fill(model: RetrievalAMN, data: VectorSet, split: Split, seed: int, tick: Tick) -> RetrievalAMN:
    """Files an entry for each training window, and fits what weighs them; returns the model.

    Raises:
        DataError: There are too few windows, or too few outside of one of the domains.
    """
    domains = data.article_domain[data.article]
    if min(np.count_nonzero(domains[split.train] != one) for one in set(domains.tolist())) < NEIGHBOURS:
        raise DataError(
            f"{data.source}: a memory needs {NEIGHBOURS} training windows outside of each domain, to be "
            "weighed as for an unseen one; give text of several domains"
        )
    with torch.no_grad():
        kept = _file(model, data, split.train, seed)
        weighed = _evenly(split.validation, _WEIGHED)
        cases = [_case(model, data, weighed, without) for without in (None, domains[split.train[kept]])]
    _fit(model, cases, tick)
    return model.eval()


def _fit(model: RetrievalAMN, cases: list[_Case], tick: Tick) -> None:
    """The attention and the share with which the mean gain is largest; a case weighs as `_WEIGHTS` says.

    Where none gains anything, the share is zero.
    """
    begin, tried = model.attention.detach().clone(), itertools.count(1)

    def gain() -> Tensor:
        gains = torch.stack([_gain(model, case).mean() for case in cases])
        return (torch.tensor(_WEIGHTS) * gains).sum()

    for share in _SHARES:
        model.train()
        with torch.no_grad():
            model.attention.copy_(begin)
            model.trust.copy_(torch.tensor([0.0, 0, 0, 0, share]))
        optimizer = torch.optim.LBFGS(
            [model.attention, model.trust], max_iter=_ROUNDS, line_search_fn="strong_wolfe"
        )

        def loss(optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            lost = -_SCALE * gain()
            lost.backward()  # type: ignore[no-untyped-call]
            tick(0, min(next(tried), _ROUNDS), _ROUNDS)
            return lost

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        model.eval()
        if gain() > _LEAST:
            return
    with torch.no_grad():
        model.trust.zero_()


class _Case(NamedTuple):
    """The products from which the gain of n weighed windows follows."""

    scores: Tensor  # (n, 64)
    products: Tensor  # (n, 64, 6)
    among: Tensor  # (n, 64, 64): products of the successors
    to_truth: Tensor  # (n, 64)
    first_to_truth: Tensor  # (n,)


def _evenly(starts: Index, count: int) -> Index:
    return starts[:: -(-len(starts) // count)]


def _contexts(data: VectorSet, starts: Index) -> Iterator[tuple[slice, Vectors]]:
    for part in chunks(len(starts), 1024):
        yield part, data.windows(starts[part])


def _file(model: RetrievalAMN, data: VectorSet, starts: Index, seed: int) -> NDArray[np.intp]:
    """Fills the memory; returns the order in which the windows lie in it."""
    amn, count = fold(model.first), len(starts)

    def keys(windows: Vectors) -> Tensor:
        x = torch.from_numpy(windows[:, :5])
        return torch.nn.functional.normalize(amn(x) + x[:, -1], dim=-1)

    sample = _evenly(starts, _SAMPLE)
    sampled = torch.cat([keys(windows) for _, windows in _contexts(data, sample)])
    model.key_map.copy_(_directions(sampled, len(model.key_map)))
    model.next_map.copy_(_directions(torch.from_numpy(data.next_vectors(sample)), len(model.next_map)))
    flat, nexts = torch.empty(count, KEY_DIM), torch.empty(count, len(model.next_map), dtype=torch.int8)
    next_step = _step(torch.from_numpy(data.next_vectors(sample)) @ model.next_map.T)
    for part, windows in _contexts(data, starts):
        flat[part] = keys(windows) @ model.key_map.T
        nexts[part] = _codes(torch.from_numpy(windows[:, 5]) @ model.next_map.T, next_step)
    return file_entries(model.memory, flat, nexts, next_step, seed).numpy()


def file_entries(memory: Entries, flat: Tensor, nexts: Tensor, next_step: Tensor, seed: int) -> Tensor:
    """Fills a memory with keys (N, 192) and codes of what followed, (N, 256); returns the order in it."""
    cells = max(1, len(flat) // CELL_ENTRIES)
    centroids = torch.from_numpy(fit_centroids(flat.numpy(), cells, seed))
    half = centroids.square().sum(1) / 2
    cell = torch.cat([(part @ centroids.T - half).argmax(1) for part in torch.split(flat, 8192)])
    order, key_step = cell.argsort(stable=True), _step(flat)
    memory.fill(
        keys=pack(_codes(flat[order], key_step)),
        key_step=key_step,
        nexts=nexts[order],
        next_step=next_step,
        start=torch.bincount(cell + 1, minlength=cells + 1).cumsum(0),
        centroids=centroids,
    )
    return order


def _directions(vectors: Tensor, count: int) -> Tensor:
    """The orthonormal directions with the most energy, (count, 768)."""
    directions: Tensor = torch.linalg.eigh((vectors.T @ vectors).double()).eigenvectors
    return directions.flip(1).T[:count].float()


def _step(flat: Tensor) -> Tensor:
    return (flat.abs().amax(0) / _CODE_MAX).clamp_min(1e-12)


def _codes(flat: Tensor, step: Tensor) -> Tensor:
    return (flat / step).round().clamp(-_CODE_MAX, _CODE_MAX).to(torch.int8)


def _case(model: RetrievalAMN, data: VectorSet, starts: Index, without: NDArray[np.str_] | None) -> _Case:
    """The windows with their neighbours; `without`: the domain of each entry, to leave the window's out."""
    memory, amn = model.memory, fold(model.first)
    codes = memory.rows(torch.arange(len(memory))).float() * memory.key_step  # (N, 192)
    parts = []
    for part in chunks(len(starts), 256):
        windows = torch.from_numpy(data.windows(starts[part]))
        x, truth, first = windows[:, :5].contiguous(), windows[:, 5], amn(windows[:, :5])
        domain = data.article_domain[data.article[starts[part]]]

        def nearest(flat: Tensor, domain: NDArray[np.str_] = domain) -> tuple[Tensor, Tensor]:
            scores = flat @ codes.T
            if without is not None:
                scores[torch.from_numpy(domain[:, None] == without)] = -2.0
            best = scores.topk(NEIGHBOURS, dim=1)
            return best.values, best.indices

        recalled = model.recall(x, first, nearest)
        nexts = recalled.nexts * memory.next_step
        to_truth = (nexts @ (truth @ model.next_map.T)[..., None])[..., 0]
        among = nexts @ nexts.transpose(1, 2)
        parts.append(_Case(recalled.scores, recalled.products, among, to_truth, (first * truth).sum(1)))
    return _Case(*map(torch.cat, zip(*parts, strict=True)))


def _gain(model: RetrievalAMN, case: _Case) -> Tensor:
    """Cosine with the truth minus AMN's, (n,), from the products alone."""
    weights = model.weights(case.scores, case.products)
    along, to_truth = ((weights * one).sum(1) for one in (case.products[..., 0], case.to_truth))
    square = torch.einsum("bi,bij,bj->b", weights, case.among, weights)
    share = model.share(case.scores, square.clamp_min(1e-12).sqrt(), along)
    length = (1 + 2 * share * along + share.square() * square).sqrt()
    return (case.first_to_truth + share * to_truth) / length - case.first_to_truth
