"""What `amn doctor` looks at. A module a noun: its facts, `look` asks for them, `judge` is pure."""

from ops.health.findings import FAILURE, OK, WARNING, Finding
from ops.health.report import Facts, Report, gather, judge
from ops.health.workers import alive_here

__all__ = ["FAILURE", "OK", "WARNING", "Facts", "Finding", "Report", "alive_here", "gather", "judge"]
