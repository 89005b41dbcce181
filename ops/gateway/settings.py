"""The limits of the gateway, each with its unit and its reason."""

from __future__ import annotations

from producer.messages import BATCH_BYTES_MAX

#: The model's name and version in addresses; the id of the model that answered is in each answer.
MODEL, VERSION = "amn", "1"
#: One body: the largest batch as binary tensor is 3.93 MB; in JSON, about 90 contexts.
BODY_BYTES_MAX = 2 * BATCH_BYTES_MAX
#: All bodies that are being received or answered: what slow clients hold must not fill the memory.
BODIES_BYTES_MAX = 256 * 1024**2
#: Connections at a time; more are refused.
CONNECTIONS_MAX = 1_024
#: A request without a deadline gets this one, and no longer one is taken: its connection stays open so long.
DEADLINE_MS, DEADLINE_MS_MAX = 30_000, 600_000
#: Answers to requests with an id of the caller's, kept so that a repeat gets the same answer.
KEPT_BYTES_MAX = 64 * 1024**2
#: A look at who is ready is good for so long, and takes so long at most: probes wait for a second.
READY_S, LOOK_MS_MAX = 1.0, 500
#: A try to reach the server: an answer that says so is better than one that waits.
SERVER_MS_MAX = 2_000
#: A request that waits for longer is taken back when its client hangs up; most have their answer before.
WATCH_S = 0.005
#: After SIGTERM, the requests under way may go on for so long.
DRAIN_S = 12
