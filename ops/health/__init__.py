"""The checks of `amn doctor`: in each module `read` asks for the facts, and `check` is pure."""

from ops.health.report import Facts, Report, check, gather
from ops.health.results import FAILURE, OK, WARNING, CheckResult
from ops.health.workers import alive_here

__all__ = ["FAILURE", "OK", "WARNING", "CheckResult", "Facts", "Report", "alive_here", "check", "gather"]
