"""Chaos: the whole service under load while its processes are killed, stopped and cut off.

`python -m tests.chaos --help`. Nothing heavy is imported here: the reaper and the producers are
processes of this package too.
"""
