"""Whether `plan --search` puts ways to run a step in the order that running them does, on eight CPU devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.benchmarks.plan_order

Every mesh of T5 1.1 mini is run as the search has it, with each remat policy; rounds go through all ways in turn, and
the median step of each counts. Costs: some ten minutes on 2 CPU cores, with nothing beside it.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import scipy.stats

from t5x_lite import flops, monitor, optimizers
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig
from t5x_lite.plan.hardware import Hardware
from t5x_lite.plan.search import search_ways
from t5x_lite.trainer import Trainer

CONFIG = T5Config(
    vocab_size=4096, emb_dim=256, num_heads=8, head_dim=32, mlp_dim=512, num_encoder_layers=4, num_decoder_layers=4
)
BATCH_SIZE, LENGTHS = 32, {"inputs": 256, "targets": 64}


def batch_of(trainer: Trainer) -> dict:
    rng = np.random.default_rng(0)
    tokens = {
        name: rng.integers(3, CONFIG.vocab_size, (BATCH_SIZE, n))
        for name, n in (
            ("encoder_input_tokens", LENGTHS["inputs"]),
            ("decoder_input_tokens", LENGTHS["targets"]),
            ("decoder_target_tokens", LENGTHS["targets"]),
        )
    }
    tokens["decoder_loss_weights"] = np.ones((BATCH_SIZE, LENGTHS["targets"]))
    return {name: jax.device_put(x.astype(np.int32), trainer.partitioner.batch) for name, x in tokens.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    hardware, mesh = Hardware.parse("cpu:8"), MeshConfig()
    devices = hardware.devices()
    trainer = Trainer(Model(CONFIG), optimizers.adafactor(optimizers.constant_rate(1e-3)), Loss(), mesh.build(devices))
    ways = search_ways(trainer, mesh, devices, hardware, BATCH_SIZE, LENGTHS, flops.peak()[0])
    running = []
    for way in ways:
        one = way.trainer(trainer, mesh, devices)
        batch = batch_of(one)
        state, _ = one.step(one.init(), batch)  # compiles
        running.append([way, one, batch, jax.block_until_ready(state), []])
    for _ in range(rounds):
        for entry in running:
            _, one, batch, state, seconds = entry
            started = time.perf_counter()
            entry[3] = jax.block_until_ready(one.step(state, batch)[0])
            seconds.append(time.perf_counter() - started)
    table = monitor.Table(["data", "fsdp", "tensor", "remat", "foreseen ms", "measured ms"])
    measured = [statistics.median(seconds) for *_, seconds in running]
    for way, seconds in zip(ways, measured, strict=True):
        table.add(*way.mesh.values(), way.remat, f"{1e3 * way.estimate.step:,.0f}", f"{1e3 * seconds:,.0f}")
    print(table.markdown())
    foreseen = [way.estimate.step for way in ways]
    print(
        f"\nSpearman's rank correlation {scipy.stats.spearmanr(foreseen, measured).statistic:.2f}; the way that is "
        f"foreseen to be the fastest takes {measured[0] / min(measured):.2f} times as long as the fastest"
    )


if __name__ == "__main__":
    main()
