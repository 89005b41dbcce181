"""python -m workers amn|fallback|shadow"""

from amn.output import ready_streams
from workers.commands import worker

ready_streams()
worker(prog_name="python -m workers")
