"""A batch job: contexts from anywhere, such as a database, to predictions in one file.

    python examples/batch.py artifacts/sample/sequences.npz --out predictions.npy

It keeps a few messages of 256 contexts in flight, so that workers do not wait for the job. Level `low` lets
live traffic go first. For files in one of the usual forms, `amn predict` does this and more (docs/files.md).
"""

import argparse
from collections import deque
from collections.abc import Iterator

import numpy as np

from producer import Options, Producer, QueueError

CONTEXTS = 256  # in a message
IN_FLIGHT = 8  # messages


def contexts(path: str) -> Iterator[np.ndarray]:
    """Yield the contexts of a file of vectors, up to 256 at a time: replace this by your own source."""
    with np.load(path) as stored:
        vectors, article = stored["vectors"].astype("f4"), stored["article"]
    newest = np.arange(4, len(vectors))
    newest = newest[article[newest - 4] == article[newest]]  # a context lies within one article
    for first in range(0, len(newest), CONTEXTS):
        rows = newest[first : first + CONTEXTS]
        yield np.stack([vectors[rows + age] for age in range(-4, 1)], axis=1)


def main() -> None:
    """Predict the contexts of a file, and say what failed."""
    parser = argparse.ArgumentParser(description="Contexts to predictions, in messages of 256.")
    parser.add_argument("source")
    parser.add_argument("--out", required=True, help="an .npy of shape (contexts, 768)")
    chosen = parser.parse_args()
    options = Options(priority="low", normalize=True, deadline_ms=60_000)
    predictions, failed = [], 0
    waiting = deque()

    with Producer() as producer:

        def settle() -> None:
            """Take the oldest answer; rows of a message that failed become NaN."""
            nonlocal failed
            count, handle = waiting.popleft()
            try:
                predictions.append(handle.result().vectors)
            except QueueError as error:
                print(f"{count} contexts failed: {error.code}: {error}")
                failed += count
                predictions.append(np.full((count, 768), np.nan, dtype="f4"))

        for batch in contexts(chosen.source):
            if len(waiting) == IN_FLIGHT:
                settle()
            waiting.append((len(batch), producer.submit_batch(batch, block=True, options=options)))
        while waiting:
            settle()

    table = np.concatenate(predictions)
    np.save(chosen.out, table)
    print(f"{len(table) - failed} of {len(table)} contexts answered; {chosen.out} has shape {table.shape}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
