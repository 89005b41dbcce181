"""The console command `amn`. This module imports nothing beyond the standard library at first, so
that an installation without the ops extra gets a sentence instead of a traceback."""

from __future__ import annotations

import sys

_EXTRA = {"click": "ops", "rich": "ops", "rq": "ops", "structlog": "ops", "httpx": "ops"}


def main() -> None:
    """Runs `amn` and leaves with its exit code."""
    try:
        from ops.app import run
    except KeyboardInterrupt:  # before there is anything that could be told how to end
        sys.stderr.write("amn: interrupted\n")
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.exit(
            f"amn: the package {error.name} is missing; install the command with: "
            "pip install 'amn-queue[ops]'"
        )
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
