"""The escalation rules, the scores that they look at, and the gain of a fallback."""
