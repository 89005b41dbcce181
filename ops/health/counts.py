"""The counters of the stats hash, as metrics."""

from __future__ import annotations

from dataclasses import dataclass

from producer.messages import PRIORITIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A counter of the stats hash.

    Attributes:
        name: Of the metric, without `_total`.    help: What it counts.
        field: Of the hash: exactly this one, or with `label` everything that begins with `<field>:`.
        label: Name of the label that takes the rest of the field.
        values: Of the label, that are there before their first event: Prometheus sees no rise in the
            first value of a series.
    """

    name: str
    help: str
    field: str
    label: str = ""
    values: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that are there from the beginning."""
        return tuple(f"{self.field}:{value}" for value in self.values) if self.label else (self.field,)


#: Totals stand apart from their parts: a part appears with its first event, and Prometheus sees no rise
#: in that.
COUNTS = (
    Count(
        name="amn_requests_accepted_by",
        help="Requests taken into the queue.",
        field="accepted",
        label="level",
        values=PRIORITIES,
    ),
    Count(
        name="amn_requests_refused_by",
        help="Submits refused because the queue was full.",
        field="refused",
        label="level",
        values=PRIORITIES,
    ),
    Count(name="amn_requests_replayed", help="Dead letters put back as requests.", field="replayed"),
    Count(name="amn_requests_cancelled", help="Requests taken back.", field="cancelled"),
    Count(name="amn_requests_answered", help="Final answers.", field="answered"),
    Count(name="amn_requests_answered_by", help="Final answers.", field="answered", label="served_by"),
    Count(name="amn_requests_failed", help="Requests that ended in an error.", field="failed"),
    Count(name="amn_requests_failed_by", help="The same.", field="failed", label="code"),
    Count(name="amn_requests_dead", help="Requests dead-lettered.", field="dead"),
    Count(name="amn_requests_dead_by", help="The same.", field="dead", label="reason"),
    Count(name="amn_requests_escalated", help="Requests handed to a fallback.", field="escalated"),
    Count(name="amn_requests_flagged", help="Requests that a rule fired on.", field="flagged"),
    Count(
        name="amn_requests_flagged_by", help="The same; one can have several.", field="reason", label="rule"
    ),
    Count(name="amn_requests_shed", help="Flagged requests that AMN answered.", field="shed"),
    Count(name="amn_requests_shed_by", help="The same.", field="shed", label="why"),
    Count(name="amn_requests_degraded", help="AMN answers in place of a fallback's.", field="degraded"),
    Count(name="amn_requests_degraded_by", help="The same.", field="degraded", label="why"),
    Count(name="amn_requests_slow", help="AMN answers that took more than 1.2 ms.", field="slow"),
    Count(name="amn_requests_timed", help="AMN answers whose time is known.", field="timed"),
    Count(name="amn_bulk_requests", help="Requests of bulk work that AMN decided or refused.", field="bulk"),
    Count(name="amn_bulk_requests_escalated", help="Of those, escalated.", field="bulk:escalated"),
    Count(name="amn_bulk_requests_failed", help="Of those, failed or dead-lettered.", field="bulk:failed"),
    Count(name="amn_bulk_requests_slow", help="Of those, slower than a minute.", field="slow:bulk"),
    Count(name="amn_bulk_requests_timed", help="Of those, whose time is known.", field="timed:bulk"),
    Count(name="amn_batch_contexts", help="Contexts decided in batches.", field="batch:contexts"),
    Count(
        name="amn_batch_contexts_extra",
        help="Those beyond the first of each batch, without bulk work.",
        field="batch:extra",
    ),
    Count(
        name="amn_batch_contexts_extra_escalated", help="Of those, escalated.", field="batch:extra:escalated"
    ),
    Count(name="amn_requests_sampleable", help="Requests that could be sampled.", field="sampleable"),
    Count(name="amn_requests_sampled", help="Requests given to the shadow worker.", field="shadowed"),
    Count(name="amn_leases_lost", help="Results that came after their lease.", field="lost"),
    Count(name="amn_bank_rechecks", help="Answers searched again exactly.", field="rechecked"),
    Count(name="amn_bank_rechecks_by", help="The same.", field="recheck", label="outcome"),
    Count(name="amn_shadow_entries_by", help="Shadow entries by outcome.", field="shadow", label="outcome"),
    Count(
        name="amn_worker_deaths",
        help="Workers of a pool that died and were started again.",
        field="worker_died",
        label="kind",
        values=("amn", "fallback", "shadow"),
    ),
    Count(
        name="amn_untold_by",
        help="Writes that the server refused.",
        field="untold",
        label="what",
    ),
)


def metric_of(field: str) -> str:
    """PromQL of a counter of the stats hash."""
    for count in COUNTS:
        if not count.label and count.field == field:
            return f"{count.name}_total"
    head, _, rest = field.partition(":")
    [found] = (count for count in COUNTS if count.label and count.field == head)
    return f'{found.name}_total{{{found.label}="{rest}"}}'
