"""Typed maps as bytes: the only module in the house that knows msgpack.

A message is a msgpack map with full names, read field by field: fast when all is as expected, and exact
when it is not.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, make_dataclass
from operator import itemgetter
from typing import Any, TypeVar

import msgpack

from producer.errors import Undecodable, UnsupportedVersion
from producer.messages import BATCH_CONTEXTS_MAX

WIRE_VERSION = 1
#: The room of a message beside its arrays of bytes: every name at its longest, and room. One of this size
#: or less is decoded at once; of a larger one, the lengths are looked at before anything is built.
BESIDE_BYTES_MAX = 16 * 1024
#: The longest list has a row for each context, the largest map a few dozen fields. There are no extension
#: types, not even for times.
MAP_MAX = 64
_LIMITS = {"max_array_len": BATCH_CONTEXTS_MAX, "max_map_len": MAP_MAX, "max_ext_len": 0}
_BYTES_HEADS = b"\xc4\xc5\xc6"
#: Some languages write these for times and for undefined values.
_EXTENSION_HEADS = b"\xc7\xc8\xc9\xd4\xd5\xd6\xd7\xd8"
#: Types as msgpack calls them, for readers who know no Python.
WORDS = {str: "text", bytes: "bin", int: "integer", bool: "boolean", dict: "map", type(None): "nil"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
#: Marks a field that must be there.
REQUIRED = object()
#: Writes one msgpack map.
pack: Callable[[Mapping[str, object]], bytes] = msgpack.packb
_T = TypeVar("_T")


class Fields:
    """The fields of one kind of map: `name=(type, default)`, in the order of the values.

    A field of type float also takes an int, as other languages write whole numbers; nothing else
    is converted, and a bool is no number. Fields that are not named here are ignored.
    """

    def __init__(self, **fields: tuple[type, object]) -> None:
        self.names = tuple(fields)
        self._types = tuple(kind for kind, _ in fields.values())
        self._defaults = {name: default for name, (_, default) in fields.items() if default is not REQUIRED}
        self._get = itemgetter(*self.names)

    def values(self, message: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values, in order; a field that is missing, or of a wrong type, is Undecodable."""
        try:
            values = self._get(message)
        except KeyError:
            try:
                values = self._get({**self._defaults, **message})
            except KeyError as error:
                raise Undecodable(f"field {error.args[0]!r} is missing") from None
        if tuple(map(type, values)) != self._types:
            values = self._converted(values)
        return values  # type: ignore[no-any-return]

    def rows(self) -> list[dict[str, Any]]:
        """The fields as rows of a table (producer/protocol/tables.py)."""
        rows = []
        for name, kind in zip(self.names, self._types, strict=True):
            row: dict[str, Any] = {"name": name, "type": WORDS.get(kind, kind.__name__)}
            row["required"] = name not in self._defaults
            if not row["required"]:  # in JSON, no bytes are an empty text
                row["default"] = self._defaults[name] or ("" if kind is bytes else kind())
            rows.append(row)
        return rows

    def _converted(self, values: Sequence[Any]) -> tuple[Any, ...]:
        converted = []
        for name, kind, value in zip(self.names, self._types, values, strict=True):
            if type(value) is kind:
                converted.append(value)
            elif kind is float and type(value) is int:
                converted.append(float(value))
            else:
                raise Undecodable(
                    f"field {name!r} is of type {word(value)}, expected {WORDS.get(kind, kind.__name__)}"
                )
        return tuple(converted)


def builder(cls: type[_T]) -> Callable[[Sequence[Any]], _T]:
    """A constructor of a frozen slotted dataclass from all its values, in order, for values that are checked.

    The generated `__init__` of a frozen class goes through `object.__setattr__`, field by field. Here a
    sister with the same slots that is not frozen is filled, and then becomes one of `cls`: a quarter of the
    time.
    """
    sister = make_dataclass(cls.__name__, [field.name for field in fields(cls)], slots=True)  # type: ignore[arg-type]
    if getattr(cls, "__slots__", None) != sister.__slots__:  # type: ignore[attr-defined]
        raise TypeError(f"{cls.__name__} needs slots=True, and no slots of a base class")

    def build(values: Sequence[Any]) -> _T:
        made = sister(*values)
        made.__class__ = cls
        return made  # type: ignore[no-any-return]

    return build


def unpack(payload: bytes, bytes_max: int) -> dict[str, Any]:
    """One msgpack map of this version, within its limits.

    Raises:
        Undecodable: Not msgpack, truncated, too large, or with two fields of one name.
        UnsupportedVersion: A version other than `WIRE_VERSION`.
    """
    if len(payload) > bytes_max:
        raise Undecodable(f"payload has {len(payload)} bytes, the limit is {bytes_max}")
    try:
        if len(payload) > BESIDE_BYTES_MAX:
            _look(payload)
        message = msgpack.unpackb(payload, **_LIMITS)
    except Exception as error:  # msgpack raises several unrelated types for bad bytes
        # Without its frames, whose buffer is as large as the payload.
        raise _located(payload, error.with_traceback(None)) from None
    if type(message) is not dict:
        raise Undecodable(f"payload is a msgpack {word(message)}, expected a map")
    head = payload[0]
    count = head & 0x0F if head < 0xDE else int.from_bytes(payload[1 : 3 if head == 0xDE else 5])
    if len(message) != count:
        raise Undecodable("payload has two fields of one name")
    version = message.get("version")
    if version != WIRE_VERSION or type(version) is not int:
        if "version" not in message:
            raise UnsupportedVersion(f"field 'version' is missing; this side reads {WIRE_VERSION}")
        raise UnsupportedVersion(
            f"wire version {shown(version)} is not supported; this side reads {WIRE_VERSION}"
        )
    return message


def _look(payload: bytes) -> None:
    """Refuses a message that would take far more memory than its own bytes; builds nothing."""
    # A byte of msgpack can become an object of sixty, so what is not an array of bytes must be small.
    unpacker = msgpack.Unpacker(max_buffer_size=len(payload))
    unpacker.feed(payload)
    count = unpacker.read_map_header()
    if count > MAP_MAX:
        raise Undecodable(f"payload has {count} fields, the limit is {MAP_MAX}")
    beside = 0
    for _ in range(count):
        unpacker.skip()
        begin = unpacker.tell()
        unpacker.skip()
        if payload[begin] not in _BYTES_HEADS:
            beside += unpacker.tell() - begin
    if beside > BESIDE_BYTES_MAX:
        raise Undecodable(f"payload holds {beside} bytes beside its arrays, the limit is {BESIDE_BYTES_MAX}")


def parts(payload: bytes) -> dict[str, bytes]:
    """The encoded values of a map that need not be sound, by name, up to the first that has no end.

    That one is what is left of the payload. Nothing is built but the names, of which there are few.
    """
    found: dict[str, bytes] = {}
    name, begin = "", len(payload)
    try:
        unpacker = msgpack.Unpacker(max_buffer_size=len(payload))
        unpacker.feed(payload)
        for _ in range(min(unpacker.read_map_header(), MAP_MAX)):
            before = unpacker.tell()
            unpacker.skip()
            name, begin = str(value(payload[before : unpacker.tell()])), unpacker.tell()
            unpacker.skip()
            found[name] = payload[begin : unpacker.tell()]
    except Exception:  # msgpack raises several unrelated types for bad bytes
        if name:
            found.setdefault(name, payload[begin:])
    return found


def value(encoded: bytes) -> object:
    """One value of a message; Undecodable where it is no msgpack, or larger than all beside arrays may be."""
    if encoded[:1] not in _BYTES_HEADS and len(encoded) > BESIDE_BYTES_MAX:
        raise Undecodable(
            f"takes {len(encoded)} bytes, the limit beside arrays is {BESIDE_BYTES_MAX}; send arrays as bin"
        )
    if encoded and encoded[0] in _EXTENSION_HEADS:
        raise Undecodable("is an extension type (a time, an undefined value); send a plain one, or none")
    try:
        return msgpack.unpackb(encoded, **_LIMITS)
    except Exception as error:
        what = f"{type(error).__name__} {error!s:.200}"
        raise Undecodable(f"is not msgpack within its limits: {what}") from None


def _located(payload: bytes, error: Exception) -> Undecodable:
    """The reason why a payload is no message, with the field where it is the fault of one."""
    for name, encoded in parts(payload).items():
        try:
            value(encoded)
        except Undecodable as found:
            return Undecodable(f"field {name!r:.80} {found}")
    if isinstance(error, Undecodable):
        return error
    return Undecodable(
        f"payload of {len(payload)} bytes is not msgpack within its limits: "
        f"{type(error).__name__} {error!s:.200}"
    )


def word(value: object) -> str:
    """The type of a value, as msgpack calls it."""
    return WORDS.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """For an error: short, and however deep and long the value is."""
    return _SHORT.repr(value)[:80]
