"""A memory: what followed each context of the training text, found by how alike the contexts are.

An entry has a key, 192 numbers, and the vector that followed, 256 numbers, as bytes. Entries lie in the order
of their cells, so that a search reads the entries of some cells alone, one piece of the file each. They are
never copied: a checkpoint's file is mapped, and all workers of a machine share its pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

KEY_DIM, NEXT_DIM = 192, 256
#: Entries that are found for a context.
NEIGHBOURS = 64
#: Entries that a cell should have, and cells that a search looks into.
CELL_ENTRIES, PROBES = 128, 32
#: Entries a panel, also in amn/kernel/base.h.
_ROWS = 16

#: Projected contexts (B, 192) -> scores and entries of the nearest, (B, 64) each, in no order.
Search = Callable[[Tensor], tuple[Tensor, Tensor]]


class Entries(nn.Module):
    """N entries in K cells.

    Attributes:
        keys: (N / 16, 96, 16, 2) int8: codes[panel][pair][entry][2].    key_step: (192,): worth of a step.
        nexts: (N, 256) int8.    next_step: (256,).
        start: (K + 1,) int64: the first entry of each cell.    centroids: (K, 192).
    """

    keys: Tensor
    key_step: Tensor
    nexts: Tensor
    next_step: Tensor
    start: Tensor
    centroids: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, (dtype, *shape) in self._forms(0, 1).items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def __len__(self) -> int:
        return len(self.nexts)

    @staticmethod
    def _forms(entries: int, cells: int) -> dict[str, tuple[Any, ...]]:
        return {
            "keys": (torch.int8, -(-entries // _ROWS), KEY_DIM // 2, _ROWS, 2),
            "key_step": (torch.float32, KEY_DIM),
            "nexts": (torch.int8, entries, NEXT_DIM),
            "next_step": (torch.float32, NEXT_DIM),
            "start": (torch.int64, cells + 1),
            "centroids": (torch.float32, cells, KEY_DIM),
        }

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes entries as they are, mapped or not, of any number that fits together."""
        given = {name: state[prefix + name] for name in self._forms(0, 1) if prefix + name in state}
        if len(given) == len(self._forms(0, 1)):
            self.fill(**given)
        super()._load_from_state_dict(state, prefix, *rest)

    def fill(self, **arrays: Tensor) -> None:
        """Takes the arrays in; integers are not copied.

        Raises:
            RuntimeError: They do not fit together: a search would read what is not there.
        """
        entries, cells = arrays["nexts"].numel() // NEXT_DIM, arrays["start"].numel() - 1
        for name, (dtype, *shape) in self._forms(entries, cells).items():
            given = arrays[name].float() if arrays[name].is_floating_point() else arrays[name]
            if list(given.shape) != shape or given.dtype != dtype:
                raise RuntimeError(f"{name} is {given.dtype} {tuple(given.shape)}, expected {dtype} {shape}")
            setattr(self, name, given.contiguous())
        start = self.start  # compared, since differences may overflow
        if not cells or start[0] != 0 or start[-1] != entries or bool((start[1:] < start[:-1]).any()):
            raise RuntimeError(f"the cells do not divide the {entries} entries")

    def rows(self, entries: Tensor) -> Tensor:
        """The codes of the keys of these entries, (n, 192)."""
        panel, row = entries // _ROWS, entries % _ROWS
        return self.keys[panel, :, row].flatten(1)

    def nearest(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The search; compiled loops take the same steps (amn/kernel/entries.h)."""
        near = flat @ self.centroids.T - self.centroids.square().sum(1) / 2
        probed = near.topk(min(PROBES, len(self.centroids)), dim=1).indices  # (B, probes)
        scores = torch.full((len(flat), NEIGHBOURS), -2.0)
        found = torch.zeros((len(flat), NEIGHBOURS), dtype=torch.int64)
        for b, cells in enumerate(probed):
            spans = zip(self.start[cells].tolist(), self.start[cells + 1].tolist(), strict=True)
            entries = torch.cat([torch.arange(*span) for span in spans])
            if len(entries):
                products = self.rows(entries).float() @ (flat[b] * self.key_step)
                order = products.topk(min(NEIGHBOURS, len(entries))).indices
                order = nn.functional.pad(order, (0, NEIGHBOURS - len(order)), value=int(order[-1]))
                scores[b], found[b] = products[order], entries[order]
        return scores, found


def pack(codes: Tensor) -> Tensor:
    """Codes (N, 192) int8 as `Entries.keys`."""
    padded = nn.functional.pad(codes, (0, 0, 0, -len(codes) % _ROWS))
    return padded.view(-1, _ROWS, KEY_DIM // 2, 2).transpose(1, 2).contiguous()
