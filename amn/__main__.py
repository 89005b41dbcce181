"""`python -m amn ...` is the command `amn ...`, which belongs to the room above this one."""

from importlib import import_module

if __name__ == "__main__":
    import_module("ops.cli").main()
