"""rq with its default Worker: a forked process for each job."""

from __future__ import annotations

from rq import Worker

from bench.peers.rq_simple import REQUIREMENTS, finished, main, result, submit

__all__ = ["COMMAND", "NOTE", "REQUIREMENTS", "finished", "result", "submit"]

NOTE = "default Worker; the model is loaded before the fork"
COMMAND = ("-m", "bench.peers.rq_forked")

if __name__ == "__main__":
    main(Worker)
