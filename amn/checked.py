"""Settings whose fields are checked when they are made, by the rules beside their definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from amn.errors import ConfigError


class Checked:
    """The base of dataclasses with such fields.

    Attributes:
        section: The name that stands before the field's in an error.
    """

    __slots__ = ()
    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]
            if one.metadata:
                value = getattr(self, one.name)
                check(one.metadata["allowed"](value), self.section + one.name, value, one.metadata["advice"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest or a hash."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]


def checked(allowed: Callable[[Any], bool], advice: str, default: Any = dataclasses.MISSING) -> Any:
    """A field whose values must be `allowed`; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"allowed": allowed, "advice": advice})


def one_of(*choices: Any) -> Any:
    """A field with some allowed values, of which the first is the default."""
    shown = ", ".join(repr(list(one) if isinstance(one, tuple) else one) for one in choices)
    return checked(choices.__contains__, f"use {shown}", choices[0])


def check(good: bool, name: str, value: object, advice: str) -> None:
    """Refuses a value.

    Raises:
        ConfigError: It is not good; the text names it, and says what to do.
    """
    if not good:
        raise ConfigError(f"{name} is {list(value) if isinstance(value, tuple) else value!r}; {advice}")
