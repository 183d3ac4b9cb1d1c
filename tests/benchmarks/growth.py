"""How cost grows: compile time with depth, messages and step time with devices, memory with the FSDP degree, start-up
with the number of processes.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.benchmarks.growth

Costs: some fifteen minutes on 2 CPU cores, with nothing beside it; all devices and processes share the cores, so that
time can only show what dividing the same work adds.
"""

import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time

import jax

from t5x_lite import monitor, optimizers
from t5x_lite.losses import Loss
from t5x_lite.models import Model
from t5x_lite.partitioning import MeshConfig
from t5x_lite.plan.estimate import State
from t5x_lite.plan.program import batch_shapes, compile_step
from t5x_lite.trainer import Trainer
from tests.benchmarks.plan_order import BATCH_SIZE, CONFIG, LENGTHS, batch_of


def trainer_of(config, mesh: dict[str, int]) -> Trainer:
    number = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    return Trainer(
        Model(config),
        optimizers.adafactor(optimizers.constant_rate(1e-3)),
        Loss(),
        MeshConfig(mesh).build(jax.devices()[:number]),
    )


def compiled(trainer: Trainer):
    return compile_step(trainer, batch_shapes(trainer, BATCH_SIZE, LENGTHS, packed=False))


def depth() -> monitor.Table:
    table = monitor.Table(
        ["layers in each stack", "compiled in s, scanned", "not scanned"],
        title="compile time, data 2 × fsdp 2 × tensor 2",
    )
    for layers in (6, 12, 24, 48):
        config = dataclasses.replace(CONFIG, num_encoder_layers=layers, num_decoder_layers=layers)
        seconds = []
        for scan in (True, False) if layers <= 12 else (True,):
            made = compiled(
                trainer_of(dataclasses.replace(config, scan_layers=scan), {"data": 2, "fsdp": 2, "tensor": 2})
            )
            seconds.append(f"{made.seconds:.1f}")
        table.add(layers, *seconds, *[""] * (2 - len(seconds)))
    return table


def devices() -> monitor.Table:
    table = monitor.Table(["devices", "axis", "step ms", "sent MiB a device"], title="the same 32 rows on more devices")
    for axis in ("data", "fsdp", "tensor"):
        for number in (1, 2, 4, 8):
            trainer = trainer_of(CONFIG, {"data": 1, "fsdp": 1, "tensor": 1, axis: number})
            sent = sum(c.sent for c in compiled(trainer).collectives)
            batch = batch_of(trainer)
            state, seconds = trainer.init(), []
            for _ in range(6):
                started = time.perf_counter()
                state = jax.block_until_ready(trainer.step(state, batch)[0])
                seconds.append(time.perf_counter() - started)
            table.add(number, axis, f"{1e3 * statistics.median(seconds[1:]):,.0f}", f"{sent / 2**20:,.1f}")
    return table


def memory() -> monitor.Table:
    table = monitor.Table(
        ["fsdp", "parameters and optimizer state MiB a device", "× fsdp, of one device's"],
        title="memory with the FSDP degree",
    )
    whole = None
    for number in (1, 2, 4, 8):
        state = State.of(trainer_of(CONFIG, {"data": 1, "fsdp": number, "tensor": 1}))
        held = state.params + state.opt_state
        whole = whole or held
        table.add(number, f"{held / 2**20:.2f}", f"{held * number / whole:.3f}")
    return table


def processes() -> monitor.Table:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))
    from npz_runs import flags, write_rows
    from processes import job

    table = monitor.Table(
        ["processes", "found each other after s", "first loss after s", "all ended after s"],
        title="a tiny run of 5 steps, from its start, on this machine's cores",
    )
    for count in (1, 2, 4):
        with tempfile.TemporaryDirectory() as name:
            top = pathlib.Path(name)
            write_rows(top / "rows.npz", 80)
            arguments = [*flags(top / "rows.npz", "{'data': -1}"), f"--model_dir={top / 'run'}", "--gin.TRAIN_STEPS=5"]
            started = time.perf_counter()
            seen: dict[str, float] = {}
            with job(top / "logs", count, *arguments) as running:
                while any(process.poll() is None for process in running.processes):
                    log = running.log(0)
                    for sign in ("device(s) (cpu)", "first loss"):
                        if sign in log:
                            seen.setdefault(sign, time.perf_counter() - started)
                    time.sleep(0.05)
                running.done()
            table.add(count, *(f"{seconds:.1f}" for seconds in (*seen.values(), time.perf_counter() - started)))
    return table


if __name__ == "__main__":
    for part in (memory, depth, devices, processes):
        print(part().markdown(), flush=True)
        print()
