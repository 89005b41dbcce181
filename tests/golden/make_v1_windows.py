"""Wrote the fixtures of batches whose contexts share their vectors, once.

    python tests/golden/make_v1_windows.py

The fixtures of `make_v1_batch.py` stay as they are: they are what others send.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgpack
from make_v1 import REQUEST, bad, keep, pick
from make_v1_batch import numbers

HERE = Path(__file__).parent / "v1_windows"
#: Seven vectors of one number each. Two contexts share four of them; the third holds the last five.
VECTORS = [[row, 100 * row, 1.0 if row % 2 else -1.0] for row in range(7)]
ENDS = [4, 5, 6]
CONTEXTS = [[i, k, *VECTORS[end - 4 + k][1:]] for i, end in enumerate(ENDS) for k in range(5)]


def fixtures() -> list[dict[str, Any]]:
    shared = {"id": "job-3:1", "shape": [3, 5, 768], "sequence": "", "position": -1}
    shared["context"], shared["ends"] = numbers((7, 768), VECTORS, "f"), struct.pack("<3H", *ENDS)
    request = REQUEST | shared
    f2 = request | {"dtype": "f2", "context": numbers((7, 768), VECTORS, "e")}
    least = pick(request, "id", "reply_to", "dtype", "shape", "context", "encoder", "ends")
    readable = {"context": {"nonzero": CONTEXTS}, "ends": ENDS}
    return [
        *(
            {"name": name, "kind": "batch request", "bytes": msgpack.packb(one), "fields": one | readable}
            for name, one in (("windows_f4", request), ("windows_f2", f2), ("windows_least", least))
        ),
        *(
            bad(f"bad_windows_{name}", msgpack.packb(request | change), "undecodable")
            for name, change in {
                "ends_out_of_range": {"ends": struct.pack("<3H", 4, 5, 7)},
                "ends_too_early": {"ends": struct.pack("<3H", 3, 5, 6)},
                "ends_fall": {"ends": struct.pack("<3H", 4, 6, 5)},
                "ends_too_few": {"ends": struct.pack("<2H", 4, 5)},
                "ends_no_bytes": {"ends": ENDS},
                "vectors_cut": {"context": request["context"][:-1]},
                "vectors_unused": {"shape": [1, 5, 768], "ends": struct.pack("<1H", 6)},
            }.items()
        ),
    ]


if __name__ == "__main__":
    keep(HERE, fixtures())
