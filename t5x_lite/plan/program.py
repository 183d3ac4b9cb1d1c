"""One training step, compiled for devices that need not be here, and what the compiler says of it."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp

from t5x_lite.plan.collectives import Collective, collectives
from t5x_lite.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Program:
    """Bytes are those of one device.

    Attributes:
      arguments: parameters, optimizer state and a batch.
      peak: the most that is in use at once, as XLA counts it, arguments included.
      seconds: that compiling took.
    """

    arguments: int
    peak: int
    collectives: list[Collective]
    seconds: float


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler refused: more memory than a device has.

    Attributes:
      used, limit: bytes, None where it did not say.
      largest: lines that name the largest arrays.
    """

    used: float | None
    limit: float | None
    largest: list[str]
    seconds: float


def batch_shapes(trainer: Trainer, batch_size: int, lengths: dict[str, int], packed: bool) -> dict:
    """Abstract batch of full rows, as the trainer takes it: int32 arrays [b, length]."""
    names = {
        "encoder_input_tokens": "inputs",
        "decoder_input_tokens": "targets",
        "decoder_target_tokens": "targets",
        "decoder_loss_weights": "targets",
    }
    if packed:
        names |= {"encoder_segment_ids": "inputs", "decoder_segment_ids": "targets"}
    if trainer.model.config.is_language_model:
        whole = lengths.get("inputs", 0) + lengths["targets"]
        sizes = {name: whole for name in names if not name.startswith("encoder")}
    else:
        sizes = {name: lengths[feature] for name, feature in names.items()}
    sharding = trainer.partitioner.batch
    return {name: jax.ShapeDtypeStruct((batch_size, n), jnp.int32, sharding=sharding) for name, n in sizes.items()}


def compile_step(trainer: Trainer, batch: dict) -> Program | TooLarge:
    """Ahead of time, for the devices of the trainer's mesh; allocates nothing."""
    started = time.monotonic()
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), trainer.abstract_state, trainer.shardings
    )
    with trainer.partitioner.activate():
        lowered = trainer._step.lower(state, batch)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _too_large(str(error), time.monotonic() - started)
    memory = compiled.memory_analysis()
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    # A CPU's own count leaves out what is temporary.
    on_cpu = trainer.partitioner.mesh.devices.flat[0].platform == "cpu"
    peak = needed if on_cpu else getattr(memory, "peak_memory_in_bytes", 0) or needed
    mesh = trainer.partitioner.mesh
    slices = len({getattr(device, "slice_index", None) for device in mesh.devices.flat}) if not on_cpu else 1
    sent = collectives(compiled.as_text(), dict(mesh.shape), slices)
    return Program(memory.argument_size_in_bytes, peak, sent, time.monotonic() - started)


def _too_large(message: str, seconds: float) -> TooLarge:
    amount = r"([\d.]+)([KMGT])"
    match = re.search(rf"Used {amount}\w* of {amount}\w* hbm", message)
    used, limit = (_bytes(*match.groups()[:2]), _bytes(*match.groups()[2:])) if match else (None, None)
    largest = []
    for part in re.split(r"\n\s+\d+\. ", message)[1:]:
        found = (re.search(pattern, part) for pattern in (r"Size: (\S+)", r"Shape: (\S+)", r'op_name="([^"]*)"'))
        largest.append(" ".join(match[1] for match in found if match))
    return TooLarge(used, limit, largest[:5], seconds)


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2.0 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit]
