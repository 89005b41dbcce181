"""Looking at the escalation gate: explain a request, backtest a policy, simulate a day."""
