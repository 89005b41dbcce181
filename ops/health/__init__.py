"""The doctor: modules that read facts, the checks of them, and the report."""

from ops.health.checks import check
from ops.health.report import FAILURE, OK, WARNING, CheckResult, Facts, Report, gather
from ops.health.workers import alive_here

__all__ = ["FAILURE", "OK", "WARNING", "CheckResult", "Facts", "Report", "alive_here", "check", "gather"]
