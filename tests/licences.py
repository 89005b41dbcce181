"""The licences of every distribution that an install brings: `make licences`.

Permissive ones alone, but for those of `WEAK`, whose copyleft ends at their own files: we ship and change
none of these. A distribution that is not installed here cannot be read, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata

from packaging.requirements import Requirement

#: Words of the licences of the packages index, and SPDX identifiers, that ask for no more than a notice.
PERMISSIVE = re.compile(
    r"(Apache|BSD|MIT|ISC|PSF|Python Software Foundation|Zlib|CC0|0BSD|BSL-1\.0|Public Domain|DFSG approved"
    r"|CNRI-Python|LLVM-exception)",
)
#: The Mozilla Public License covers files, not what uses them; "dev" where developers alone install it.
WEAK = {
    "certifi": "MPL-2.0: root certificates that httpx brings",
    "orjson": "MPL-2.0 for files of its own",
    "tqdm": "MPL-2.0 for files of its own: bars that sentence-transformers brings",
    "hypothesis": "MPL-2.0, dev",
    "pathspec": "MPL-2.0, dev",
    "axe-playwright-python": "MIT, in a file and not in its metadata; axe-core in it MPL-2.0, dev",
}
EXTRAS = ("worker", "ops", "otel", "apprise", "bank", "train", "data", "ray", "bench", "dev")


def installed(*extras: str) -> dict[str, metadata.Distribution | None]:
    """Every distribution that the extras bring, by name; None for one that is not here."""
    found: dict[tuple[str, str], metadata.Distribution | None] = {}
    waiting = [("amn-queue", extra) for extra in extras]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        try:
            one = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found[name, extra] = None
            continue
        found[name, extra] = one
        for needed in map(Requirement, one.requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                normal = re.sub(r"[-_.]+", "-", needed.name).lower()
                waiting += [(normal, inner) for inner in ("", *needed.extras)]
    return {name: one for (name, _), one in sorted(found.items())}


def licence(one: metadata.Distribution) -> str:
    """What a distribution says of its licence: an expression, classifiers, or the first line of a text."""
    said = one.metadata
    if expression := said.get("License-Expression"):
        return expression
    classifiers = [text for text in said.get_all("Classifier") or () if text.startswith("License")]
    return (
        "; ".join(text.split(" :: ")[-1] for text in classifiers)
        or (said.get("License") or "").split("\n")[0]
    )


def refused(licences: Mapping[str, str]) -> Iterator[str]:
    """Yields the distributions whose licence, in all of its parts, is not permissive."""
    for name, text in licences.items():
        parts = re.split(r" AND |; ", text)
        # Of alternatives, one is enough.
        if name not in WEAK and not all(PERMISSIVE.search(part) for part in parts):
            yield f"{name}: {text or 'no licence in its metadata'}"


if __name__ == "__main__":
    here = installed(*EXTRAS)
    told = {name: licence(one) for name, one in here.items() if one is not None}
    for name, text in told.items():
        print(f"{name:40} {WEAK.get(name, text)}")
    print("\nnot here: " + (", ".join(name for name, one in here.items() if one is None) or "none"))
    if bad := list(refused(told)):
        raise SystemExit("not permissive: " + "; ".join(bad))
