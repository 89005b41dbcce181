"""The counters of the stats hash: their fields, their metrics, and how they are read.

Producers count what they submit, so that they can write anything to this hash: a name that is not of
the form of ours is left out, and a hash with far too many names is read for the totals alone.
"""

from __future__ import annotations

import re
from typing import NamedTuple, cast

import redis

from producer.keys import Keys
from producer.messages import PRIORITIES


class Count(NamedTuple):
    """A counter of the stats hash.

    Attributes:
        field: Name in the hash; with `label`, everything that begins with `<field>:`.
        name: Name of the metric, without `_total`.
        label: Name of the label that takes the rest of the field.
        values: Values of the label that are there before their first event: Prometheus sees no rise in
            the first value of a series.
    """

    field: str
    name: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that are there from the beginning."""
        return tuple(f"{self.field}:{value}" for value in self.values) if self.label else (self.field,)


_KINDS = ("amn", "fallback", "shadow")
#: Totals stand apart from their parts: a part appears with its first event, and Prometheus sees no rise
#: in that.
COUNTS = (
    Count("accepted", "amn_requests_accepted_by", "Requests taken into the queue.", "level", PRIORITIES),
    Count("refused", "amn_requests_refused_by", "Submits refused: the queue was full.", "level", PRIORITIES),
    Count("replayed", "amn_requests_replayed", "Dead letters put back as requests."),
    Count("cancelled", "amn_requests_cancelled", "Requests taken back."),
    Count("answered", "amn_requests_answered", "Final answers."),
    Count("answered", "amn_requests_answered_by", "Final answers.", "served_by"),
    Count("failed", "amn_requests_failed", "Requests that ended in an error."),
    Count("failed", "amn_requests_failed_by", "The same.", "code"),
    Count("dead", "amn_requests_dead", "Requests dead-lettered."),
    Count("dead", "amn_requests_dead_by", "The same.", "reason"),
    Count("escalated", "amn_requests_escalated", "Requests handed to a fallback."),
    Count("flagged", "amn_requests_flagged", "Requests that a rule fired on."),
    Count("reason", "amn_requests_flagged_by", "The same; one can have several.", "rule"),
    Count("shed", "amn_requests_shed", "Flagged requests that AMN answered."),
    Count("shed", "amn_requests_shed_by", "The same.", "why"),
    Count("degraded", "amn_requests_degraded", "AMN answers in place of a fallback's."),
    Count("degraded", "amn_requests_degraded_by", "The same.", "why"),
    Count("slow", "amn_requests_slow", "AMN answers that took more than 1.2 ms."),
    Count("timed", "amn_requests_timed", "AMN answers whose time is known."),
    Count("bulk", "amn_bulk_requests", "Requests of bulk work that AMN decided or refused."),
    Count("bulk:escalated", "amn_bulk_requests_escalated", "Of those, escalated."),
    Count("bulk:failed", "amn_bulk_requests_failed", "Of those, failed or dead-lettered."),
    Count("slow:bulk", "amn_bulk_requests_slow", "Of those, slower than a minute."),
    Count("timed:bulk", "amn_bulk_requests_timed", "Of those, whose time is known."),
    Count("batch:contexts", "amn_batch_contexts", "Contexts decided in batches."),
    Count("batch:extra", "amn_batch_contexts_extra", "Those beyond the first of each, no bulk work."),
    Count("batch:extra:escalated", "amn_batch_contexts_extra_escalated", "Of those, escalated."),
    Count("sampleable", "amn_requests_sampleable", "Requests that could be sampled."),
    Count("shadowed", "amn_requests_sampled", "Requests given to the shadow worker."),
    Count("lost", "amn_leases_lost", "Results that came after their lease."),
    Count("rechecked", "amn_bank_rechecks", "Answers searched again exactly."),
    Count("recheck", "amn_bank_rechecks_by", "The same.", "outcome"),
    Count("shadow", "amn_shadow_entries_by", "Shadow entries by outcome.", "outcome"),
    Count("worker_died", "amn_worker_deaths", "Workers that died and were started again.", "kind", _KINDS),
    Count("untold", "amn_untold_by", "Writes that the server refused.", "what"),
)

#: Many times the names that the workers of all versions write.
NAMES_MAX = 1_000
_OURS = re.compile(rb"[A-Za-z0-9_.:/@+-]{1,120}")
#: Those that are there from the beginning.
TOTALS = tuple(dict.fromkeys(field for count in COUNTS for field in count.fields))


def read_counters(client: redis.Redis, keys: Keys) -> dict[str, int]:
    """Counts since the first request, by name, sorted; none when something else has the hash's name."""
    try:
        if client.hlen(keys.stats) > NAMES_MAX:
            values = cast("list[bytes | None]", client.hmget(keys.stats, list(TOTALS)))
            pairs = zip(TOTALS, values, strict=True)
            found = {name.encode(): value for name, value in pairs if value is not None}
        else:
            found = cast("dict[bytes, bytes]", client.hgetall(keys.stats))
    except redis.ResponseError:
        return {}
    return {
        name.decode("utf-8", "replace"): int(value)
        for name, value in sorted(found.items())
        if _OURS.fullmatch(name) and re.fullmatch(rb"-?\d{1,19}", value)
    }
