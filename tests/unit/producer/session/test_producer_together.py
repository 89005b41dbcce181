"""What several requests of one submit share, and what each of them has of its own."""

from __future__ import annotations

import numpy as np
import pytest

from producer import errors
from producer.options import Options
from producer.protocol import wire
from producer.session.requests import prepare, prepare_all
from producer.settings import ProducerSettings

SETTINGS = ProducerSettings()


def test_requests_of_one_submit_share_their_moment_and_nothing_else(context):
    contexts = [context, context[::-1], np.roll(context, 1, axis=0)]
    made = prepare_all(contexts, Options(deadline_ms=500.0), "client", SETTINGS)
    requests = [wire.decode_request(item.payload) for item in made]
    assert len({(item.submitted_at_ms, item.expires_at_ms) for item in requests}) == 1
    assert requests[0].expires_at_ms == requests[0].submitted_at_ms + 500.0
    assert len({item.id for item in requests}) == 3
    for sent, item, one in zip(contexts, requests, made, strict=True):
        assert item.id == one.id
        np.testing.assert_array_equal(item.context, sent)


def test_several_are_prepared_as_one_alone(context):
    options = Options(request_id="mine", tokens=7, priority="low", provisional=True, sequence="s", position=3)
    [together], alone = (
        prepare_all([context], options, "client", SETTINGS),
        prepare(context, options, "client", SETTINGS),
    )
    for name in ("id", "sample_key", "deadline_ms", "provisional", "named", "level", "contexts"):
        assert getattr(together, name) == getattr(alone, name)
    assert len(together.payload) == len(alone.payload)
    assert together.call != alone.call  # each submit has a mark of its own


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_number_without_a_finite_square_refuses_all_and_warns_of_nothing(context, value):
    wrong = context.copy()
    wrong[2, 5] = value
    with pytest.raises(errors.NotFinite, match="context vector 2 "):
        prepare_all([context, wrong], Options(), "client", SETTINGS)


def test_the_caller_may_change_a_context_once_it_is_prepared(context):
    mine = context.copy()
    [made] = prepare_all([mine], Options(), "client", SETTINGS)
    mine[:] = 0.0
    np.testing.assert_array_equal(wire.decode_request(made.payload).context, context)
