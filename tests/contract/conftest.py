"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rig import Rig


@pytest.fixture
def rig(server: Any, contexts: Callable[..., NDArray[np.float32]]) -> Iterator[Rig]:
    rig = Rig(server, contexts(8))
    yield rig
    rig.close()


@pytest.fixture
def real_rig(real_server: Any, contexts: Callable[..., NDArray[np.float32]]) -> Iterator[Rig]:
    rig = Rig(real_server, contexts(8))
    yield rig
    rig.close()
