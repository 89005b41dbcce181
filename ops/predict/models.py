"""The models that answer a run: each part is of one set of them, and the manifest says of which.

A set is the ids of model, bank, policy (with the gate's calibration), fallback, and the calibration by which
it blends. Workers can be replaced while a file is under way, AMN before the fallback, and nothing can ask the
new ones for answers of the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from ops.errors import RunStopped
from producer.messages import UNFIT

#: What is done when other models answer: they are named in the manifest, or the run stops. By default a run
#: that is under way names them, and one that goes on with the work of an earlier one stops.
NAME, STOP, DEFAULT = "name", "stop", ""
ON_CHANGE = (NAME, STOP)


class ModelsChanged(Exception):
    """The answers of one row group are not of one set: it has to be answered again."""


def differing(known: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say what differs between two sets; "" if nothing does. An id that one of them lacks tells nothing."""
    for name, value in now.items():
        if value and known.get(name, value) not in ("", value):
            return f"{name} was {known[name]} and is {value} now"
    return ""


def merge(known: dict[str, str], now: Mapping[str, str]) -> None:
    """Add the ids of more answers to a set.

    Raises:
        ModelsChanged: They are of another set, or of workers that do not belong together.
    """
    if now.get("calibration") == UNFIT:
        raise ModelsChanged("the calibration of the fallback workers was fitted for another AMN")
    if why := differing(known, now):
        raise ModelsChanged(why)
    known |= {name: value for name, value in now.items() if value}


class ModelSets:
    """The sets of models of one target.

    Attributes:
        first: The set of its first answers; empty before there are any.
    """

    def __init__(self, on_change: str = DEFAULT) -> None:
        self.first: dict[str, str] = {}
        self._others: list[dict[str, str]] = []
        self._on_change, self._answered = on_change, False

    def add(self, models: Mapping[str, str]) -> None:
        """Take a set of which the target holds answers."""
        if not any(models.values()):
            return
        for one in (self.first, *self._others):
            if not differing(one, models):
                merge(one, models)
                return
        self._others.append(dict(models))

    def check(self, models: Mapping[str, str]) -> None:
        """Look at the set of some answers that are to go into the target.

        Raises:
            RunStopped: The target holds answers of others only, and may not have these too.
        """
        if not any(models.values()):
            return
        changes = [differing(one, models) for one in (self.first, *self._others)]
        if all(changes) and (self._on_change == STOP or (self._on_change == DEFAULT and not self._answered)):
            raise RunStopped(
                f"{changes[-1]}, and the target holds answers of the first: put that back and go on, begin "
                "anew with --restart, or take answers of both, named by part, with --on-change name"
            )
        self._answered = True
        self.add(models)
