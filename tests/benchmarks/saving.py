"""What saving a state of 1 GB costs: how long a step waits for it, what it does to the steps beside it, and how its
bandwidth compares with the disk's own.

    python -m tests.benchmarks.saving [--folder DIR] [--rounds 5] [--json results.json]

Costs: some three minutes on 2 CPU cores, and 5 GB in `--folder`. Nothing else should run. T5 1.1 small with AdamW's
moments, float32; steps of one short row, most of whose time goes to the optimizer. Reading is from the page cache, the
disk's own too.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite import checkpoints, configuration, monitor, optimizers
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig
from t5x_lite.saving import Keep
from t5x_lite.trainer import Trainer

POSITIONS = {"positions": np.zeros((4, 2), np.int64)}


def timed(call):
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def disk(folder: pathlib.Path, size: int) -> tuple[float, float]:
    """Seconds to write one file of so many bytes, onto the disk, and to read it."""
    data, file = np.random.default_rng(0).bytes(size), folder / "plain"

    def write():
        with open(file, "wb", buffering=0) as f:
            for at in range(0, size, 1 << 24):
                f.write(data[at : at + (1 << 24)])
            os.fsync(f.fileno())

    writing, _ = timed(write)
    reading, _ = timed(lambda: np.fromfile(file, np.uint8))
    file.unlink()
    return writing, reading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where checkpoints are written; by default a temporary one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    configuration.parse(["models/t5_1_1/small.gin"], ["T5Config.vocab_size=38400"])
    config = T5Config()
    trainer = Trainer(Model(config), optimizers.adamw(optimizers.constant_rate(1e-3)), Loss(), MeshConfig().build())
    tokens = np.ones((jax.device_count(), 8), np.int32)
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    batch = {name: jax.device_put(tokens, trainer.partitioner.batch) for name in names}
    state = jax.block_until_ready(trainer.step(trainer.init(), batch)[0])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    jax.block_until_ready(jax.tree.map(jnp.copy, state))  # compiles
    copies, blocked, saves, restores, alone, beside, writes, reads = ([] for _ in range(8))

    def step():
        nonlocal state
        seconds, (state, _) = timed(lambda: jax.block_until_ready(trainer.step(state, batch)))
        return seconds

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        for _ in range(arguments.rounds):
            seconds, copy = timed(lambda: jax.block_until_ready(jax.tree.map(jnp.copy, state)))
            copies.append(seconds)
            del copy
            alone += [step() for _ in range(4)]
            with checkpoints.Checkpointer(folder / "run", Keep(last=1)) as checkpointer:
                started = time.perf_counter()
                blocked.append(timed(lambda: checkpointer.save(state, POSITIONS, {"model": config.to_dict()}))[0])
                while checkpointer.is_saving:
                    beside.append(step())
                checkpointer.wait()
                saves.append(time.perf_counter() - started)
            with checkpoints.Checkpointer(folder / "run") as checkpointer:
                seconds, restored = timed(
                    lambda: jax.block_until_ready(
                        checkpointer.restore(trainer.abstract_state, trainer.shardings, POSITIONS).state
                    )
                )
                restores.append(seconds)
                del restored
            shutil.rmtree(folder / "run")
            writing, reading = disk(folder, size)
            writes.append(writing)
            reads.append(reading)

    middle = statistics.median
    table = monitor.Table(["what", "s", "range", "GB/s"], title=f"a state of {size / 1e9:.2f} GB")
    for what, seconds, moved in (
        ("plain copy in memory", copies, True),
        ("save: the step waits", blocked, False),
        ("save: until it is complete, with checksums", saves, True),
        ("one plain file written, with fsync", writes, True),
        ("restore, checksums verified", restores, True),
        ("one plain file read", reads, True),
        ("a step, nothing being saved", alone, False),
        ("a step while it is being saved", beside, False),
    ):
        rate = f"{size / middle(seconds) / 1e9:.2f}" if moved else ""
        table.add(what, f"{middle(seconds):.3f}", f"[{min(seconds):.3f}, {max(seconds):.3f}]", rate)
    print(table.markdown())
    print(
        f"\nThe step waits {middle(blocked) / middle(copies):.2f} × as long as a plain copy takes; a step beside one "
        f"is {middle(beside) / middle(alone):.2f} × as long as one alone"
    )
    if arguments.json:
        lists = {"copy": copies, "blocked": blocked, "save": saves, "restore": restores, "alone": alone}
        lists |= {"beside": beside, "write": writes, "read": reads, "bytes": size}
        pathlib.Path(arguments.json).write_text(json.dumps(lists, indent=1))


if __name__ == "__main__":
    main()
