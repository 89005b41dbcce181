"""Whether workers of this machine compute in the compiled loops, or in NumPy, which is slower."""

from __future__ import annotations

from ops.health.findings import OK, WARNING, Finding

_AGAIN = (
    "install gcc and libc6-dev (or clang), then install this package again (pip install --force-reinstall)"
)
_WHY = {
    "not built": f"there was no C compiler when this package was installed; {_AGAIN}",
    "outdated": f"they were built from other sources, or for another system; {_AGAIN}",
    "processor": "this processor lacks AVX2 or FMA; run AMN workers on one that has both",
}


def look() -> str:
    """What is in the way of the loops; empty when they are in use."""
    from amn.kernel.bindings import WHY

    return WHY


def judge(why: str) -> Finding:
    """NumPy gives the same answers: a warning, and no failure."""
    if not why:
        return Finding(OK, "loops", "compiled")
    text = f"not in use, workers on this machine take more time: {_WHY.get(why, why)}"
    return Finding(WARNING, "loops", text)
