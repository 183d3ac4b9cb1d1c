"""Run as a program, maybe in several processes: prints the digests of training batches and where the streams stand.

python batch_digests.py '{"source": {"kind": …}, "batch_size": 8, "steps": 5, "positions": …, "place": …}'
"""

import hashlib
import json
import sys

import numpy as np

from t5x_lite import data, partitioning, processes, vocabularies


def main(source, batch_size, steps, positions=None, place=None):
    processes.start(processes.Place(*place) if place else None, processes.Processes(), {}, preemptible=False)
    if source.pop("bytes", False):
        source["vocabulary"] = vocabularies.ByteVocabulary()
    kind = getattr(data, source.pop("kind"))(**source)
    partitioner = partitioning.MeshConfig().build()
    positions = None if positions is None else np.array(positions)
    with data.Batches(kind.open(), kind.num_streams, batch_size, partitioner.batch, positions) as batches:
        for _ in range(steps):
            batch, positions = next(batches)
            whole = partitioning.fetch(batch)
            digest = hashlib.sha256()
            for name in sorted(whole):
                digest.update(f"{name}{whole[name].shape}{whole[name].dtype}".encode() + whole[name].tobytes())
            print("batch", digest.hexdigest())
        print("positions", json.dumps(data.gather_positions(positions).tolist()), flush=True)
    processes.leave()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
