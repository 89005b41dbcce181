"""python -m workers amn|fallback|shadow"""

from workers.commands import worker

worker(prog_name="python -m workers")
