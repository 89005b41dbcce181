"""Any order of submits, leases, crashes, ends, expiries, cancels and flushes (see queue_machine.py)."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from queue_machine import QueueMachine

#: fakeredis is asked more often: a step takes less there than a round trip.
EXAMPLES = {"fake": 50, "valkey": 25, "redis": 25}


def test_the_queue_does_what_its_model_does(server):
    class Machine(QueueMachine):
        target = server

    limits = settings(
        max_examples=EXAMPLES[server.kind],
        stateful_step_count=40,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes: by hand, when needed
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=limits)
