"""Reporting truths: what really came next, so that the service can tell when its predictions become worse.

    python examples/truths.py

There are two ways. An application that sends every context of a document names `sequence` and `position`:
each request then carries the truth of the one before. Any other application reports the true vector when it
learns it. The service compares 1 to 5 % of the requests; `amn drift status` shows the means (docs/drift.md).
"""

import numpy as np

from producer import Options, Producer

with np.load("artifacts/sample/sequences.npz") as stored:
    vectors, article = stored["vectors"].astype("f4"), stored["article"]
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

articles = [np.flatnonzero(article == one) for one in np.unique(article)[:20]]

with Producer() as producer:
    # First way: all contexts of an article, in reading order; `position` is the number of the newest vector.
    for number, rows in enumerate(articles):
        newest = range(4, len(rows))
        handles = producer.submit_many(
            [vectors[rows[last - 4 : last + 1]] for last in newest],
            options=[Options(sequence=f"article-{number}", position=last) for last in newest],
        )
        for handle in handles:
            handle.result()
    print(sum(len(rows) - 4 for rows in articles), "requests; each brings the truth of the one before it")

    # Second way: the answer comes now, and the truth later.
    known = [row for rows in articles for row in rows[5:]]
    handles = producer.submit_many([vectors[row - 5 : row] for row in known])
    for handle in handles:
        handle.result()
    reports = zip(handles, known, strict=True)
    sent = sum(producer.report_truth(handle, vectors[row]) for handle, row in reports)
    print(len(known), "truths reported;", sent, "of them were wanted, since their requests are in the sample")
