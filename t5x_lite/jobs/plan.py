"""The job `plan`: what a training run would need on hardware that is not here, before anyone pays for it.

gin files of the run ── its step, compiled for that hardware's devices ── memory, messages, the shortest time
"""

import contextlib
import copy
import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence

import jax
from etils import epath

import gin
from t5x_lite import console, flops, monitor
from t5x_lite.data import SeqioSource
from t5x_lite.errors import UserError
from t5x_lite.finetuning import Trainable
from t5x_lite.jobs import train  # noqa: F401  (gin must know it: its arguments are what is planned)
from t5x_lite.losses import Loss
from t5x_lite.models import Model
from t5x_lite.partitioning import MeshConfig, leaves_by_path
from t5x_lite.plan.hardware import Hardware
from t5x_lite.plan.program import batch_shapes, compile_step
from t5x_lite.plan.search import Way, search_ways
from t5x_lite.plan.summary import amount, describe, summarize
from t5x_lite.trainer import Trainer

TRAIN = "t5x_lite.train"
OPTIONAL: dict[str, Callable] = {
    "loss": Loss,
    "mesh": MeshConfig,
    "trainable": Trainable,
    "num_microbatches": lambda: 1,
}
# Of a search: lines shown, programs compiled at most, and how many of them shall fit.
SHOWN, MOST_COMPILED, WANTED = 10, 6, 3


@gin.configurable(module="t5x_lite")
def plan(
    hardware: str = gin.REQUIRED,
    mfu: float = 0.4,
    search: bool = False,
    save: str | None = None,
    json_file: str | None = None,
) -> int:
    """Compiles the training step that the gin files describe for `hardware`, and prints what it takes.

    Nothing is allocated, and no data are read. What the run would bind is bound as for `train`.

    Args:
      hardware: `v5e:16x16`, `v4:8x8x8` (a slice by its shape), `2xv5e:16x16` (slices over a network), `h100:8`,
        `cpu:8`.
      mfu: at which to say how many tokens a second there would be.
      search: reckon all sensible meshes, remat policies and numbers of microbatches, compile those that promise most
        until three fit, and go on with the fastest.
      save: a folder for the compiled step. `train` finds it there when it runs on such hardware, with the same versions
        of jax and jaxlib and with `compilation_cache.folder` set to it.
      json_file: the same as JSON.

    Returns:
      0 where the step fits, 1 where it does not.

    Raises:
      UserError: wrong hardware; a mesh that does not fit it; or what `train` would refuse.
    """
    target = Hardware.parse(hardware)
    if save and not target.can_be_compiled_for:
        raise UserError(
            f"--save: for {hardware} only an estimate is compiled, which no GPU can run; on the GPU host "
            "train keeps its own compiled step in compilation_cache.folder"
        )
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")  # whatever this machine has, it is not asked
    if save:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(save))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    run = run_of_the_gin_files()
    source = run["data"]
    if not isinstance(source, SeqioSource):
        raise UserError("plan needs SeqioSource as train.data, whose feature lengths say how large a batch is")
    lengths, devices = dict(source.feature_lengths), target.devices()
    trainer = Trainer(
        Model(run["model"]),
        run["optimizer"],
        run["loss"],
        run["mesh"].build(devices),
        num_microbatches=run["num_microbatches"],
        trainable=run["trainable"],
    )

    def compiled(trainer: Trainer) -> dict:
        trainer.check_batch_size(run["batch_size"])
        console.show(
            f"{trainer.partitioner.describe()}, remat {trainer.model.config.remat}, {trainer.num_microbatches} "
            "microbatch(es): compiling ...",
            console.INFO,
        )
        program = compile_step(trainer, batch_shapes(trainer, run["batch_size"], lengths, source.packing))
        return summarize(target, trainer, run["batch_size"], lengths, program, mfu)

    if search:
        summary = best_of(target, trainer, run["mesh"], devices, run["batch_size"], lengths, compiled)
    else:
        for name, size in replicated(trainer).items():
            console.show(
                f"note: {name}, {amount(size)}, is whole on every device: no rule of Mesh.rules shards it over this "
                "MESH",
                None,
            )
        summary = compiled(trainer)
    console.show(describe(summary))
    if save:
        console.show(
            f"saved in {save}; there: t5x-lite train ... --gin.compilation_cache.folder={os.path.abspath(save)}"
        )
    if json_file:
        epath.Path(json_file).write_text(json.dumps(summary, indent=1))
    return 0 if summary["fits"] else 1


def best_of(
    hardware: Hardware,
    trainer: Trainer,
    mesh: MeshConfig,
    devices,
    batch_size: int,
    lengths: dict[str, int],
    compiled: Callable[[Trainer], dict],
) -> dict:
    """Summary of the fastest way that fits, of those that were compiled, or of the last where none fits.

    Prints what was reckoned and what was compiled.

    Args:
      compiled: from a trainer to the summary of its step.
    """
    peak = hardware.peak or flops.peak()[0]
    ways = search_ways(trainer, mesh, devices, hardware, batch_size, lengths, peak)
    console.show(str(reckoned(ways[:SHOWN], f"{len(ways)} ways, reckoned")))
    fitting, tried = [], []
    progress = monitor.Progress("plan", min(MOST_COMPILED, len(ways)), "programs at most")
    for way in ways:
        if any(way.mesh == other.mesh for other, _ in fitting):
            continue  # which recomputes less
        summary = compiled(way.trainer(trainer, mesh, devices))
        progress.add()
        if summary["fits"]:
            # What is sent is known now.
            way = dataclasses.replace(
                way,
                estimate=dataclasses.replace(
                    way.estimate,
                    memory=summary["peak"],
                    seconds={**way.estimate.seconds, **{k: summary["seconds"][k] for k in ("links", "network")}},
                ),
            )
            fitting.append((way, {**summary, "flags": way.flags}))
        tried.append(way)
        if len(fitting) == WANTED or len(tried) == MOST_COMPILED:
            break
    progress.close()
    if not fitting:
        console.show(f"none of the {len(tried)} that promise most fits")
        return summary
    fitting.sort(key=lambda one: one[0].estimate.step)
    console.show(str(reckoned([way for way, _ in fitting], f"{len(tried)} compiled, {len(fitting)} fit")))
    way, summary = fitting[0]
    console.show(f"best: {way.flags}")
    return summary


def reckoned(ways: Sequence[Way], title: str) -> monitor.Table:
    """One row for each way to run a step: its mesh, what it changes, memory of a device, and times in ms."""
    table = monitor.Table(
        [
            "data",
            "fsdp",
            "tensor",
            "remat",
            "microbatches",
            "memory",
            "step ms",
            "compute",
            "memory",
            "links",
            "network",
        ],
        title=title,
    )
    for way in ways:
        seconds = (f"{1e3 * second:,.0f}" for second in way.estimate.seconds.values())
        table.add(
            *way.mesh.values(),
            way.remat,
            way.num_microbatches,
            amount(way.estimate.memory),
            f"{1e3 * way.estimate.step:,.0f}",
            *seconds,
        )
    return table


def run_of_the_gin_files() -> dict:
    """What of `train`'s arguments makes its step, constructed.

    Raises:
      UserError: one of them is not bound, or a macro that it stands on.
    """
    bound = gin.get_bindings(TRAIN, resolve_references=False)
    missing = [name for name in ("model", "optimizer", "data", "batch_size") if name not in bound]
    if missing:
        raise UserError(
            f"plan: the gin files bind no train.{', train.'.join(missing)}; give those of the run, such as "
            "--gin_file=models/t5_1_1/xxl.gin --gin_file=runs/pretrain.gin"
        )
    values = {}
    for name in ("model", "optimizer", "data", "batch_size", *OPTIONAL):
        if name not in bound:
            values[name] = OPTIONAL[name]()
            continue
        try:
            values[name] = copy.deepcopy(bound[name])  # as gin itself does when it calls a function
        except ValueError as error:
            raise UserError(f"plan: train.{name}: {str(error).splitlines()[0]}") from error
    return values


def replicated(trainer: Trainer) -> dict[str, int]:
    """{path: bytes} of the parameters of at least a hundredth of the model that every device holds whole, on a mesh
    that is there to shard them."""
    shapes, shardings = (leaves_by_path(x) for x in (trainer.abstract_state.params, trainer.shardings.params))
    sizes = {name: math.prod(x.shape) * x.dtype.itemsize for name, x in shapes.items()}
    large = sum(sizes.values()) / 100
    sharded = math.prod(trainer.partitioner.mesh.shape[axis] for axis in ("fsdp", "tensor")) > 1
    return {
        name: size for name, size in sizes.items() if sharded and size >= large and shardings[name].is_fully_replicated
    }
