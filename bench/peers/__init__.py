"""One job on other Python queues: one small module each, all with equal names.

    REQUIREMENTS  what pip installs for it
    NOTE          how it was set up, in its favour; {choice} is what the sweep chose
    CHOICES       what `compare --choice` may try; none where there is nothing to choose
    COMMAND       the worker's command line, after the interpreter
    submit        sends contexts in the fastest way that the library documents; returns handles
    finished      how many jobs have their answer stored, by one cheap command; or `waiting`, how many
                  have not, where a system counts only those
    result        the stored answer of a handle, read as the library reads it

Both `submit` and `result` may be coroutines; the runner gives each call a loop of its own.

They run in environments of their own (`bench/systems.py`), since their needs contradict each
other. The server's address is in BENCH_URL.
"""
