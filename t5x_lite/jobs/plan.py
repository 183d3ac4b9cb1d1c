"""The job `plan`: what a training run would need on hardware that is not here, before anyone pays for it.

    gin files of the run ── its step, compiled for that hardware's devices ── memory, messages, the shortest time
"""

import contextlib
import copy
import dataclasses
import json
import math

import gin
import jax

from t5x_lite import flops, monitor
from t5x_lite.data import SeqioSource
from t5x_lite.errors import UserError
from t5x_lite.finetuning import Trainable
from t5x_lite.jobs import train  # noqa: F401  (gin must know it: its arguments are what is planned)
from t5x_lite.losses import Loss
from t5x_lite.models import Model
from t5x_lite.partitioning import MeshConfig, leaves_by_path
from t5x_lite.plan.collectives import BETWEEN_SLICES
from t5x_lite.plan.hardware import Hardware
from t5x_lite.plan.program import Program, TooLarge, batch_shapes, compile_step
from t5x_lite.trainer import Trainer

TRAIN = "t5x_lite.train"
OPTIONAL = {"loss": Loss, "mesh": MeshConfig, "trainable": Trainable, "num_microbatches": lambda: 1}


@gin.configurable(module="t5x_lite")
def plan(hardware: str = gin.REQUIRED, mfu: float = 0.4, json_file: str | None = None) -> int:
    """Compiles the training step that the gin files describe for `hardware`, and prints what it takes.

    Nothing is allocated, and no data are read. What the run would bind is bound as for `train`.

    Args:
      hardware: `v5e:16x16`, `v4:8x8x8` (a slice by its shape), `2xv5e:16x16` (slices over a network), `h100:8`,
        `cpu:8`.
      mfu: at which to say how many tokens a second there would be.
      json_file: the same as JSON.

    Returns:
      0 where the step fits, 1 where it does not.

    Raises:
      UserError: wrong hardware; a mesh that does not fit it; or what `train` would refuse.
    """
    target = Hardware.parse(hardware)
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")  # whatever this machine has, it is not asked
    run = run_of_the_gin_files()
    trainer = Trainer(Model(run["model"]), run["optimizer"], run["loss"], run["mesh"].build(target.devices()),
                      num_microbatches=run["num_microbatches"], trainable=run["trainable"])
    trainer.check_batch_size(run["batch_size"])
    source = run["data"]
    if not isinstance(source, SeqioSource):
        raise UserError("plan needs SeqioSource as train.data, whose feature lengths say how large a batch is")
    lengths = dict(source.feature_lengths)
    batch = batch_shapes(trainer, run["batch_size"], lengths, source.packing)
    print(trainer.partitioner.describe())
    for name, size in replicated(trainer).items():
        print(f"note: {name}, {_size(size)}, is whole on every device: no rule of Mesh.rules shards it over this MESH")
    print("compiling ...", flush=True)
    program = compile_step(trainer, batch)
    summary = summarize(target, trainer, run["batch_size"], lengths, program, mfu)
    print(describe(summary))
    if json_file:
        with open(json_file, "w") as file:
            json.dump(summary, file, indent=1)
    return 0 if summary["fits"] else 1


def run_of_the_gin_files() -> dict:
    """What of `train`'s arguments makes its step, constructed.

    Raises:
      UserError: one of them is not bound, or a macro that it stands on.
    """
    bound = gin.get_bindings(TRAIN, resolve_references=False)
    missing = [name for name in ("model", "optimizer", "data", "batch_size") if name not in bound]
    if missing:
        raise UserError(f"plan: the gin files bind no train.{', train.'.join(missing)}; give those of the run, such as "
                        "--gin_file=models/t5_1_1/xxl.gin --gin_file=runs/pretrain.gin")
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
    return {name: size for name, size in sizes.items()
            if sharded and size >= large and shardings[name].is_fully_replicated}


def summarize(hardware: Hardware, trainer: Trainer, batch_size: int, lengths: dict[str, int],
              program: Program | TooLarge, mfu: float) -> dict:
    """Numbers alone; bytes and FLOPs are those of one device unless the name says otherwise."""
    config, chip = trainer.model.config, hardware.chip
    mesh = dict(trainer.partitioner.mesh.shape)
    useful = flops.train_flops_per_example(config, lengths.get("inputs", 0), lengths["targets"]) * batch_size
    peak = hardware.peak or flops.peak()[0]
    tokens = batch_size * sum(lengths.values())
    summary = {
        "hardware": hardware.name, "devices": hardware.number, "mesh": mesh,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(trainer.abstract_state.params)),
        "parameter_bytes": _share(trainer.abstract_state.params, trainer.shardings.params),
        "optimizer_bytes": _share(trainer.abstract_state.opt_state, trainer.shardings.opt_state),
        "memory": chip.memory, "step_flops_all_devices": useful, "tokens_a_step": tokens,
        "compile_seconds": program.seconds,
        "tokens_per_second_at_mfu": {str(mfu): tokens * mfu * peak * hardware.number / useful},
        "compiled_for": "the hardware" if hardware.is_tpu or hardware.family == "cpu" else
                        "CPU devices in its place: bytes are estimates",
    }
    if not isinstance(program, Program):
        return {**summary, "fits": False, "needed": program.used, "limit": program.limit, "largest": program.largest}
    seconds = {
        "compute": useful / hardware.number / peak,
        # Every byte of state is read and written at least once.
        "memory": 2 * program.arguments / chip.bandwidth,
        **_link_seconds(program.collectives, hardware, mesh),
    }
    bound_by = max(seconds, key=seconds.get)
    return {
        **summary, "fits": program.peak <= chip.memory, "arguments": program.arguments, "peak": program.peak,
        "headroom": chip.memory - program.peak,
        "collectives": [dataclasses.asdict(c) for c in program.collectives],
        "seconds": seconds, "bound_by": bound_by, "shortest_step": seconds[bound_by],
        "tokens_per_second_at_most": tokens / seconds[bound_by],
    }


def _share(abstract, shardings) -> int:
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, shardings)
    return sum(jax.tree.leaves(sizes))


def _link_seconds(collectives, hardware: Hardware, mesh: dict[str, int]) -> dict[str, float]:
    """Seconds on the links and on the network between slices or hosts, each as if nothing overlapped with it."""
    near = far = 0.0
    for c in collectives:
        hosts = not hardware.is_tpu and _spans_hosts(c.axes or tuple(mesh), mesh, hardware.near)
        if hosts or c.kind == BETWEEN_SLICES:
            far += c.sent
        else:
            near += c.sent
    return {"links": near / hardware.chip.links, "network": far / hardware.chip.network}


def _spans_hosts(axes, mesh: dict[str, int], near: int) -> bool:
    """Devices are given to the mesh host by host, so that only its outermost axes reach beyond one."""
    inner = math.prod(mesh.values())
    for axis, size in mesh.items():
        if axis in axes and inner > near:
            return True
        inner //= size
    return False


def describe(summary: dict) -> str:
    """For people: a table, then what to make of it."""
    table = monitor.Table(["", "a device"], title=f"{summary['hardware']}: {summary['devices']} devices, mesh "
                          + " × ".join(f"{axis} {size}" for axis, size in summary["mesh"].items()))
    table.add("parameters", f"{_size(summary['parameter_bytes'])} of {summary['parameters']:,} numbers")
    table.add("optimizer state", _size(summary["optimizer_bytes"]))
    lines = []
    if "peak" in summary:
        table.add("peak memory", f"{_size(summary['peak'])} of {_size(summary['memory'])}")
        table.add("headroom", _size(summary["headroom"]))
        for c in summary["collectives"]:
            axes = ", ".join(c["axes"]) or "other groups"
            table.add(f"{c['kind']} over {axes}", f"{_size(c['sent'])} sent, {c['times']} times")
        for name, seconds in summary["seconds"].items():
            table.add(f"time for {name}", f"{1e3 * seconds:,.1f} ms")
        lines.append(f"a step takes at least {1e3 * summary['shortest_step']:,.1f} ms, bound by {summary['bound_by']}: at "
                     f"most {summary['tokens_per_second_at_most']:,.0f} tokens/s")
    for mfu, tokens in summary["tokens_per_second_at_mfu"].items():
        lines.append(f"at {100 * float(mfu):.0f} % MFU: {tokens:,.0f} tokens/s")
    lines.append(f"compiled for {summary['compiled_for']} in {summary['compile_seconds']:.0f} s")
    if not summary["fits"]:
        needed, limit = summary.get("peak", summary.get("needed")), summary.get("limit", summary["memory"])
        amounts = f": {_size(needed)} of {_size(limit)}" if needed and limit else ""
        lines.append(f"DOES NOT FIT{amounts}. In this order: shard the parameters (a larger fsdp in MESH), recompute "
                     "(T5Config.remat='full'), split the batch (train.num_microbatches), tensor parallelism in MESH")
        lines += [f"  largest: {line}" for line in summary.get("largest", ())]
    return "\n".join([str(table), *lines])


def _size(number: float) -> str:
    return f"{number / 2**30:.2f} GiB" if abs(number) >= 2**30 / 100 else f"{number / 2**20:.2f} MiB"
