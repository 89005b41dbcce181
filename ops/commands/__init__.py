"""One module a command of `amn`; each only reads options and draws results."""
