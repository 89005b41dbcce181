"""The scripts that clients run, and the same as a library of functions, which a server keeps over restarts.

A function is its script's text and nothing else, so that there is one copy of the rules.
"""

from __future__ import annotations

from producer.transport.connection import script_text
from producer.transport.link import Script

#: Of the keys, the arguments and the results of the scripts; another version gets functions of other names.
VERSION = 1
LIBRARY = f"amn_v{VERSION}"
#: Each script with its number of keys, and what its function is registered with. On a server that is out of
#: memory, a function without `allow-oom` is refused, and one with it may run every command: submit has none.
_SCRIPTS = {"submit": (7, ""), "cancel": (12, "flags={'allow-oom'}, ")}


def scripts() -> list[dict[str, object]]:
    """Each script with its name, file, SHA-1, number of keys, and the name of its function."""
    return [
        {
            "name": name,
            "version": VERSION,
            "file": f"producer/lua/{name}.lua",
            "sha1": Script(script_text("producer", name)).sha,
            "keys": keys,
            "function": _function(name),
        }
        for name, (keys, _) in _SCRIPTS.items()
    ]


def library() -> str:
    """The text for `FUNCTION LOAD REPLACE`."""
    functions = (
        f"redis.register_function{{function_name='{_function(name)}', {flags}callback=function(KEYS, ARGV)\n"
        f"{script_text('producer', name)}end}}\n"
        for name, (_, flags) in _SCRIPTS.items()
    )
    return f"#!lua name={LIBRARY}\n" + "".join(functions)


def _function(name: str) -> str:
    return f"amn_{name}_v{VERSION}"
