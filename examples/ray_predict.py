"""Files to Parquet on a Ray cluster: the rows of `amn predict --direct`, row group by row group, by actors.

    python examples/ray_predict.py documents/ --out predictions/ --actors 8

An actor gets numbers of row groups, and not rows: a context needs the rows before it, and a block of Ray may
begin anywhere. It reads its row groups itself, by the code of `amn predict`, and so every node of the cluster
must see sources, target and artifacts under one path.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from ops.predict.direct import DirectEngine
from ops.predict.files import group_rows, open_data, open_sources
from ops.predict.settings import PredictSettings
from ops.settings import artifacts_folder


class RowGroups:
    """Predicts row groups, with model, gate and fallback loaded once."""

    def __init__(self, settings: PredictSettings, artifacts: Path, policy: str) -> None:
        self.settings, self.data = settings, open_sources(settings)
        self.engine = DirectEngine(artifacts, policy)

    def __call__(self, numbers: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        """Yield the predictions of these row groups, at most 1,024 rows at a time."""
        for number in numbers["item"].tolist():
            for rows in group_rows(self.settings, self.data, self.data.groups[number], self.engine):
                yield pa.Table.from_batches([rows])


def main() -> None:
    """Predict all row groups of the sources."""
    parser = argparse.ArgumentParser(description="Batch prediction by the actors of a Ray cluster.")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--out", required=True, help="a new or an empty folder")
    parser.add_argument("--actors", type=int, default=2, help="of one core each")
    parser.add_argument("--policy", default="calibrated")
    chosen = parser.parse_args()
    out, *paths = (str(Path(path).absolute()) for path in (chosen.out, *chosen.sources))
    settings = PredictSettings(sources=paths, out=out)
    groups = open_data(settings).groups  # refuses, before any work, what cannot be predicted
    ray.data.from_items([group.number for group in groups]).map_batches(
        RowGroups,
        fn_constructor_args=(settings, artifacts_folder(None).absolute(), chosen.policy),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=chosen.actors),
    ).write_parquet(out, ray_remote_args={"num_cpus": 0})  # the actors may have every core


if __name__ == "__main__":
    main()
