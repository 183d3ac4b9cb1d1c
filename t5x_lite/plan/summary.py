"""What is known of a compiled step, as numbers and for people."""

import dataclasses

from t5x_lite import flops, monitor
from t5x_lite.plan.collectives import BETWEEN_SLICES
from t5x_lite.plan.estimate import State
from t5x_lite.plan.hardware import Hardware
from t5x_lite.plan.program import Program, TooLarge
from t5x_lite.trainer import Trainer


def summarize(
    hardware: Hardware,
    trainer: Trainer,
    batch_size: int,
    lengths: dict[str, int],
    program: Program | TooLarge,
    mfu: float,
) -> dict:
    """Numbers alone; bytes and FLOPs are those of one device unless the name says otherwise."""
    config, chip = trainer.model.config, hardware.chip
    mesh = dict(trainer.partitioner.mesh.shape)
    useful = flops.train_flops_per_example(config, lengths.get("inputs", 0), lengths["targets"]) * batch_size
    peak = hardware.peak or flops.peak()[0]
    state = State.of(trainer)
    tokens = batch_size * sum(lengths.values())
    summary = {
        "hardware": hardware.name,
        "devices": hardware.number,
        "mesh": mesh,
        "remat": config.remat,
        "num_microbatches": trainer.num_microbatches,
        "parameters": state.parameters,
        "parameter_bytes": state.params,
        "optimizer_bytes": state.opt_state,
        "memory": chip.memory,
        "step_flops_all_devices": useful,
        "tokens_a_step": tokens,
        "compile_seconds": program.seconds,
        "tokens_per_second_at_mfu": {str(mfu): tokens * mfu * peak * hardware.number / useful},
        "compiled_for": "the hardware"
        if hardware.can_be_compiled_for
        else "CPU devices in its place: bytes are estimates",
    }
    if not isinstance(program, Program):
        return {**summary, "fits": False, "needed": program.used, "limit": program.limit, "largest": program.largest}
    seconds = {
        "compute": useful / hardware.number / peak,
        # Every byte of state is read and written at least once.
        "memory": 2 * program.arguments / chip.bandwidth,
        **link_seconds(program.collectives, hardware, mesh),
    }
    bound_by = max(seconds, key=seconds.get)
    return {
        **summary,
        "fits": program.peak <= chip.memory,
        "arguments": program.arguments,
        "peak": program.peak,
        "headroom": chip.memory - program.peak,
        "collectives": [dataclasses.asdict(c) for c in program.collectives],
        "seconds": seconds,
        "bound_by": bound_by,
        "shortest_step": seconds[bound_by],
        "tokens_per_second_at_most": tokens / seconds[bound_by],
    }


def link_seconds(collectives, hardware: Hardware, mesh: dict[str, int]) -> dict[str, float]:
    """Seconds on the links and on the network between slices or hosts, each as if nothing overlapped with it."""
    near = far = 0.0
    for c in collectives:
        # A program of several slices is that of one, and says itself what goes between them.
        hosts = not hardware.is_tpu and hardware.spans_network(c.axes or tuple(mesh), mesh)
        if hosts or c.kind == BETWEEN_SLICES:
            far += c.sent
        else:
            near += c.sent
    return {"links": near / hardware.chip.links, "network": far / hardware.chip.network}


def describe(summary: dict) -> str:
    """For people: a table, then what to make of it."""
    table = monitor.Table(
        ["", "a device"],
        title=f"{summary['hardware']}: {summary['devices']} devices, mesh "
        + " × ".join(f"{axis} {size}" for axis, size in summary["mesh"].items()),
    )
    table.add("parameters", f"{amount(summary['parameter_bytes'])} of {summary['parameters']:,} numbers")
    table.add("optimizer state", amount(summary["optimizer_bytes"]))
    lines = []
    if "peak" in summary:
        table.add("peak memory", f"{amount(summary['peak'])} of {amount(summary['memory'])}")
        table.add("headroom", amount(summary["headroom"]))
        for c in summary["collectives"]:
            axes = ", ".join(c["axes"]) or "other groups"
            table.add(f"{c['kind']} over {axes}", f"{amount(c['sent'])} sent, {c['times']} times")
        for name, seconds in summary["seconds"].items():
            table.add(f"time for {name}", f"{1e3 * seconds:,.1f} ms")
        lines.append(
            f"a step takes at least {1e3 * summary['shortest_step']:,.1f} ms, bound by {summary['bound_by']}: at "
            f"most {summary['tokens_per_second_at_most']:,.0f} tokens/s"
        )
    for mfu, tokens in summary["tokens_per_second_at_mfu"].items():
        lines.append(f"at {100 * float(mfu):.0f} % MFU: {tokens:,.0f} tokens/s")
    lines.append(f"compiled for {summary['compiled_for']} in {summary['compile_seconds']:.0f} s")
    if not summary["fits"]:
        needed, limit = summary.get("peak", summary.get("needed")), summary.get("limit", summary["memory"])
        amounts = f": {amount(needed)} of {amount(limit)}" if needed and limit else ""
        lines.append(
            f"DOES NOT FIT{amounts}. In this order: shard the parameters (a larger fsdp in MESH), recompute "
            "(T5Config.remat='full'), split the batch (train.num_microbatches), tensor parallelism in MESH"
        )
        lines += [f"  largest: {line}" for line in summary.get("largest", ())]
    return "\n".join([str(table), *lines])


def amount(number: float) -> str:
    """Bytes as text: GiB, or MiB for less than a hundredth of one."""
    return f"{number / 2**30:.2f} GiB" if abs(number) >= 2**30 / 100 else f"{number / 2**20:.2f} MiB"
