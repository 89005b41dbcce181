"""The doctor: modules that read facts, the checks of them, and the report."""

from ops.health.checks import check
from ops.health.process_checks import alive
from ops.health.report import FAILURE, OK, WARNING, CheckResult, Facts, Report, gather

__all__ = ["FAILURE", "OK", "WARNING", "CheckResult", "Facts", "Report", "alive", "check", "gather"]
