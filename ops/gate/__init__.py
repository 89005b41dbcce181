"""Looking at the escalation gate: explain a request, replay a policy, simulate a day."""
