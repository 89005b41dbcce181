"""Tokens: what a client sends is compared byte by byte."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from ops.settings import listening_token
from ops.web.access import bears


def test_a_token_beyond_ascii_is_known_again() -> None:
    token = "ein-schlüssel-für-alle".encode()
    assert bears(Headers(raw=[(b"authorization", b"Bearer " + token)]), token)
    assert not bears(Headers(raw=[(b"authorization", b"Bearer " + token[:-1])]), token)


def test_space_around_a_token_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMN_X_TOKEN", "a-token-of-twenty-four-chars\n")
    assert listening_token("AMN_X_TOKEN", "0.0.0.0") == "a-token-of-twenty-four-chars"
