"""When to look at how much waits for a client: an exact count would cost a command for each answer."""

from __future__ import annotations

from collections.abc import Iterable

#: So much goes to a client between two looks.
LOOK_BYTES = 2 * 1024**2
#: What an answer takes beside its bytes.
BESIDE_BYTES = 512
_CLIENTS_MAX = 10_000


class Unread:
    """Bytes that this worker sent to each client since its reply stream was last looked at."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}

    def due(self, sent: Iterable[tuple[str, int]]) -> str:
        """Takes clients and the bytes that go to each; the numbers, from 1, of those to look at now."""
        if len(self._sent) > _CLIENTS_MAX:
            self._sent.clear()
        numbers = []
        for number, (client, size) in enumerate(sent, 1):
            total = self._sent.get(client, 0) + size
            self._sent[client] = total % LOOK_BYTES
            if total >= LOOK_BYTES:
                numbers.append(str(number))
        return " ".join(numbers)
