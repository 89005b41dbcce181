"""One judge leads at a time, on every server."""

from __future__ import annotations

from typing import Any

from ops.clock import server_now_ms
from ops.leader import Leadership, leader_key
from producer.keys import Keys

KEYS = Keys("main")


def two(server: Any, lease_ms: int = 60_000) -> tuple[Leadership, Leadership]:
    return Leadership(server.admin, KEYS, lease_ms), Leadership(server.admin, KEYS, lease_ms)


def test_the_first_leads_the_second_does_not_and_the_first_renews(server: Any) -> None:
    first, second = two(server)
    fence = first.lead()
    assert fence > 0
    assert second.lead() == 0
    assert first.lead() == fence
    assert server.admin.get(leader_key(KEYS)) == str(fence).encode()
    assert 0 < server.admin.pttl(leader_key(KEYS)) <= 60_000


def test_each_leader_has_a_higher_fence_than_the_last(server: Any) -> None:
    first, second = two(server)
    old = first.lead()
    server.admin.delete(leader_key(KEYS))  # its lease ran out
    assert second.lead() > old
    assert first.lead() == 0


def test_a_resigned_leader_makes_room_and_a_former_one_cannot_resign_for_another(server: Any) -> None:
    first, second = two(server)
    first.lead()
    first.resign()
    assert second.lead() > 0
    first.fence = 1  # what a judge that slept would still believe
    first.resign()
    assert second.lead() == second.fence


def test_the_fence_grows_also_when_the_server_forgot_everything(server: Any) -> None:
    first, second = two(server)
    old = first.lead()
    server.admin.flushall()
    while server_now_ms(server.admin) <= old:
        pass  # the next millisecond
    assert second.lead() > old
