"""Work that runs only when nothing else wants the core."""

from __future__ import annotations

import os


def yield_to_others() -> None:
    """Puts this thread, and those that it starts, into the idle class for good.

    Linux: a waking process takes the core from an idle-class one at once, where a merely nicer one keeps it
    for milliseconds. Elsewhere: nicer.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        os.nice(10)
