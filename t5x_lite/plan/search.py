"""Ways to run a step on given devices: which mesh, what to recompute, in how many parts."""

import dataclasses
from collections.abc import Iterator, Sequence

from t5x_lite.errors import UserError
from t5x_lite.models import Model
from t5x_lite.partitioning import MeshConfig
from t5x_lite.plan.estimate import Estimate, State, estimate
from t5x_lite.plan.hardware import Hardware
from t5x_lite.trainer import Trainer

# Without "offload", whose time is that of the way to the host.
REMAT_POLICIES = ("none", "minimal", "full")
MICROBATCHES = (1, 2, 4, 8, 16)
# Of a device's memory: what it keeps for itself, and an estimate's error.
USABLE = 0.9


@dataclasses.dataclass(frozen=True)
class Way:
    """One way, and what it would take."""

    mesh: dict[str, int]
    remat: str
    num_microbatches: int
    estimate: Estimate

    @property
    def flags(self) -> str:
        return (
            f'--gin.MESH="{self.mesh}" --gin.T5Config.remat={self.remat} '
            f"--gin.train.num_microbatches={self.num_microbatches}"
        )

    def trainer(self, trainer: Trainer, mesh: MeshConfig, devices: Sequence) -> Trainer:
        """That of the gin files, done this way."""
        config = dataclasses.replace(trainer.model.config, remat=self.remat)
        return dataclasses.replace(
            trainer,
            model=Model(config),
            num_microbatches=self.num_microbatches,
            partitioner=dataclasses.replace(mesh, shape=self.mesh).build(devices),
        )


def meshes(hardware: Hardware) -> Iterator[dict[str, int]]:
    """Sensible ones: `tensor` within what links join, and of the rest `fsdp` over all, over the links, or over nothing.

    Slices and hosts, which only a network joins, are told apart by the first axis, `data`.
    """
    tensor = 1
    while tensor <= hardware.near:
        rest = hardware.number // tensor
        if hardware.number % tensor == 0 and hardware.near % tensor == 0:
            within = hardware.near // tensor
            for fsdp in dict.fromkeys((rest, within, 1)):
                data = rest // fsdp
                if data * fsdp == rest and data % (hardware.slices if hardware.is_tpu else 1) == 0:
                    yield {"data": data, "fsdp": fsdp, "tensor": tensor}
        tensor *= 2


def search_ways(
    trainer: Trainer,
    mesh: MeshConfig,
    devices: Sequence,
    hardware: Hardware,
    batch_size: int,
    lengths: dict[str, int],
    peak: float,
) -> list[Way]:
    """A way for each mesh that divides model and batch and each remat policy, in as few parts as fit.

    Those that fit come first, and of these the fastest first; then those that do not, the smallest first.

    Args:
      trainer: the run as the gin files have it.
      mesh: its rules are kept.
      peak: FLOP/s of a device.
    """
    found, limit = [], USABLE * hardware.chip.memory
    for shape in meshes(hardware):
        partitioner = dataclasses.replace(mesh, shape=shape).build(devices)
        try:
            state = State.of(dataclasses.replace(trainer, partitioner=partitioner))
        except UserError:  # an axis of the model that this mesh does not divide
            continue
        for remat in REMAT_POLICIES:
            config = dataclasses.replace(trainer.model.config, remat=remat)
            way = None
            for parts in MICROBATCHES:
                if batch_size % (partitioner.batch_shards * parts) == 0:
                    way = Way(
                        shape, remat, parts, estimate(config, state, hardware, shape, parts, batch_size, lengths, peak)
                    )
                    if way.estimate.memory <= limit:
                        break  # more parts only cost time
            found += [way] if way else []
    if not found:
        raise UserError(
            f"plan.search: no mesh of {hardware.number} devices divides both the model and BATCH_SIZE = "
            f"{batch_size}; make the batch a multiple of {hardware.number}"
        )

    def order(way: Way):
        memory = way.estimate.memory
        return (False, way.estimate.step) if memory <= limit else (True, memory)

    return sorted(found, key=order)
