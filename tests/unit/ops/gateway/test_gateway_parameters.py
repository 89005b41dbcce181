"""Parameters of a request: names that are unknown are refused, of whatever type."""

from __future__ import annotations

import msgpack
import pytest

from ops.gateway.errors import Refused
from ops.gateway.parameters import options
from ops.gateway.plain import MSGPACK, fields_of


def test_names_of_several_types_are_refused_as_unknown_ones() -> None:
    body = msgpack.packb({"version": 1, b"bytes": 1, "text": 2})
    with pytest.raises(Refused, match="is not known") as caught:
        options(fields_of(body, MSGPACK), "")
    assert caught.value.status == 400
