"""Messages that decoders build are what their constructors make."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, dataclass, fields, replace

import numpy as np
import pytest

from producer.messages import Failure, Reply, Request, Timings
from producer.protocol.maps import builder


@pytest.mark.parametrize("cls", [Request, Reply, Timings, Failure])
def test_a_built_message_is_frozen_and_can_be_copied_and_changed_as_any_other(cls):
    names = [field.name for field in fields(cls)]
    built = builder(cls)(names)  # a message does not look at its values
    assert type(built) is cls
    assert [getattr(built, name) for name in names] == names
    with pytest.raises(FrozenInstanceError):
        setattr(built, names[0], "x")
    assert copy.copy(built) == built == replace(built)
    assert getattr(replace(built, **{names[-1]: 7}), names[-1]) == 7
    assert repr(built).startswith(f"{cls.__name__}({names[0]}=")


def test_values_that_are_too_few_or_too_many_are_an_error():
    for values in ([1.0] * 3, [1.0] * 5):
        with pytest.raises(TypeError, match="positional argument"):
            builder(Timings)(values)


def test_a_class_whose_slots_are_not_its_fields_is_refused_at_once():
    @dataclass(frozen=True)
    class Open:
        a: int

    @dataclass(frozen=True, slots=True)
    class More(Failure):
        extra: int = 0

    for cls in (Open, More):
        with pytest.raises(TypeError, match=f"{cls.__name__} needs slots=True"):
            builder(cls)


def test_arrays_are_kept_as_they_are():
    array = np.arange(3)
    values = [array if field.name == "context" else "" for field in fields(Request)]
    assert builder(Request)(values).context is array
