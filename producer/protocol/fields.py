"""Reads typed fields out of decoded maps, fast when all is as expected and exact when it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, make_dataclass
from operator import itemgetter
from typing import Any, TypeVar

from producer.errors import Undecodable

_T = TypeVar("_T")
#: Marks a field that must be there.
REQUIRED = object()


class Fields:
    """The fields of one kind of map: `name=(type, default)`, in the order of the values.

    A field of type float also takes an int, as other languages write whole numbers; nothing else
    is converted, and a bool is no number. Fields that are not named here are ignored.
    """

    def __init__(self, **fields: tuple[type, object]) -> None:
        self._names = tuple(fields)
        self._types = tuple(kind for kind, _ in fields.values())
        self._defaults = {name: default for name, (_, default) in fields.items() if default is not REQUIRED}
        self._get = itemgetter(*self._names)

    def values(self, message: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values, in order.

        Raises:
            Undecodable: A field is missing, or of a wrong type.
        """
        try:
            values = self._get(message)
        except KeyError:
            values = self._completed(message)
        if tuple(map(type, values)) != self._types:
            values = self._converted(values)
        return values  # type: ignore[no-any-return]

    def _completed(self, message: Mapping[str, Any]) -> Any:
        try:
            return self._get({**self._defaults, **message})
        except KeyError as error:
            raise Undecodable(f"field {error.args[0]!r} is missing") from None

    def _converted(self, values: Sequence[Any]) -> tuple[Any, ...]:
        converted = []
        for name, kind, value in zip(self._names, self._types, values, strict=True):
            if type(value) is kind:
                converted.append(value)
            elif kind is float and type(value) is int:
                converted.append(float(value))
            else:
                raise Undecodable(
                    f"field {name!r} is of type {type(value).__name__}, expected {kind.__name__}"
                )
        return tuple(converted)


def builder(cls: type[_T]) -> Callable[[Sequence[Any]], _T]:
    """A constructor of a frozen slotted dataclass from all its values, in order.

    The generated `__init__` of a frozen class goes through `object.__setattr__`, field by field. Here a
    sister with the same slots that is not frozen is filled, and then becomes one of `cls`: a quarter of the
    time. For decoders, whose values are checked.

    Raises:
        TypeError: The class has other slots than its fields.
    """
    sister = make_dataclass(cls.__name__, [field.name for field in fields(cls)], slots=True)  # type: ignore[arg-type]
    if getattr(cls, "__slots__", None) != sister.__slots__:  # type: ignore[attr-defined]
        raise TypeError(f"{cls.__name__} needs slots=True, and no slots of a base class")

    def build(values: Sequence[Any]) -> _T:
        made = sister(*values)
        made.__class__ = cls
        return made  # type: ignore[no-any-return]

    return build
