"""Hardware by name (`v5e:16x16`, `2xv5p:4x4x8`, `h200:64`, `cpu:8`): devices to compile for, and its limits."""

import contextlib
import dataclasses
import math
import os
import re
from typing import Any

import jax

from t5x_lite.errors import UserError
from t5x_lite.flops import published_peak

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, by its maker's figures.

    Attributes:
      kind: as `jax.Device.device_kind`, for the peak (flops.py).
      memory: bytes.
      bandwidth: of that memory, bytes/s.
      links: bytes/s that one device sends to its neighbours, all links together: ICI, NVLink.
      network: bytes/s that one device sends to another slice or host. An assumption: hosts differ.
    """

    kind: str
    memory: float
    bandwidth: float
    links: float
    network: float


# TPU: https://cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}, interconnect a chip in one direction. GPU:
# NVIDIA's data sheets, NVLink in one direction. Network: 100 Gbit/s for a TPU host of 4 chips, 400 for a GPU.
CHIPS = {
    "v2": Chip("TPU v2", 16 * 2**30 / 2, 700 * GB / 2, 62 * GB, 3 * GB),
    "v3": Chip("TPU v3", 32 * 2**30 / 2, 900 * GB / 2, 82 * GB, 3 * GB),
    "v4": Chip("TPU v4", 32 * 2**30, 1228 * GB, 300 * GB, 3 * GB),
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 819 * GB, 200 * GB, 3 * GB),
    "v5p": Chip("TPU v5", 95 * 2**30, 2765 * GB, 600 * GB, 3 * GB),
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 1640 * GB, 448 * GB, 6 * GB),
    "a100": Chip("NVIDIA A100", 80 * GB, 2039 * GB, 300 * GB, 25 * GB),
    "h100": Chip("NVIDIA H100", 80 * GB, 3350 * GB, 450 * GB, 50 * GB),
    "h200": Chip("NVIDIA H200", 141 * GB, 4800 * GB, 450 * GB, 50 * GB),
    "cpu": Chip("cpu", math.nan, 20 * GB, 10 * GB, 1 * GB),  # a machine's, of which each device has its part
}
GPUS_A_HOST = 8


def _machine_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


@dataclasses.dataclass(frozen=True)
class Hardware:
    """`slices` times `topology` of one chip; a GPU's slice is its host."""

    name: str
    family: str  # of CHIPS
    topology: str
    slices: int = 1

    @classmethod
    def parse(cls, name: str) -> "Hardware":
        """Raises UserError where the name is none."""
        match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?):(\d+(?:x\d+)*)", name)
        if not match or match[2] not in CHIPS:
            raise UserError(
                f"--hardware={name}: no such hardware; write [SLICESx]KIND:SHAPE, as in v5e:16x16, "
                f"2xv5p:4x4x8, h200:64 or cpu:8, with one of {', '.join(CHIPS)}"
            )
        slices, family, topology = int(match[1] or 1), match[2], match[3]
        tpu = CHIPS[family].kind.startswith("TPU")
        if not tpu and ("x" in topology or slices > 1):
            raise UserError(f"--hardware={name}: write {family}:N with the number of devices")
        return cls(name, family, topology, slices)

    @property
    def chip(self) -> Chip:
        chip = CHIPS[self.family]
        if self.family != "cpu":
            return chip
        # CPU devices share their machine.
        return dataclasses.replace(
            chip,
            memory=_machine_memory() / self.number,
            bandwidth=chip.bandwidth / self.number,
            links=chip.links / self.number,
        )

    @property
    def is_tpu(self) -> bool:
        return self.chip.kind.startswith("TPU")

    @property
    def can_be_compiled_for(self) -> bool:
        """Where it is not there; a GPU's program is compiled for CPU devices in its place."""
        return self.is_tpu or self.family == "cpu"

    @property
    def peak(self) -> float | None:
        """Dense bf16 FLOP/s of a device; None for a CPU, whose own is measured where it is."""
        return published_peak(self.chip.kind)

    @property
    def near(self) -> int:
        """Devices that are joined by links, rather than the network."""
        return self.number // self.slices if self.is_tpu or self.family == "cpu" else min(GPUS_A_HOST, self.number)

    @property
    def number(self) -> int:
        cores = 2 if self.family in ("v2", "v3") else 1
        return self.slices * cores * math.prod(map(int, self.topology.split("x")))

    def spans_network(self, axes: tuple[str, ...], mesh: dict[str, int]) -> bool:
        """Whether devices that differ along these axes of a mesh are joined by the network alone.

        Slices share the first axis. GPUs are given to the mesh host by host, so that only its outermost axes reach
        beyond one.
        """
        if self.is_tpu:
            return self.slices > 1 and next(iter(mesh)) in axes
        inner = math.prod(mesh.values())
        for axis, size in mesh.items():
            if axis in axes and size > 1 and inner > self.near:
                return True
            inner //= size
        return False

    def devices(self) -> list:
        """To compile for, slice by slice. TPUs need libtpu, but no TPU; in place of GPUs there are CPU devices.

        Raises:
          UserError: libtpu is missing, or does not know this shape; or JAX has been started with fewer CPU devices.
        """
        if not self.is_tpu:
            with contextlib.suppress(RuntimeError):  # JAX has been asked for its devices before: they are what they are
                jax.config.update("jax_num_cpu_devices", self.number)
            found = jax.devices("cpu")
            if len(found) < self.number:
                raise UserError(
                    f"--hardware={self.name}: this process has {len(found)} CPU device(s); set "
                    f"XLA_FLAGS=--xla_force_host_platform_device_count={self.number}"
                )
            return found[: self.number]
        # It would ask the network which TPU machine this is, and let one process in at a time.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        from jax.experimental import topologies

        options: dict[str, Any] = {"chip_config_name": "megacore"} if self.family == "v4" else {}
        if self.slices > 1:
            options["num_slices"] = self.slices
        try:
            topology = topologies.get_topology_desc(f"{self.family}:{self.topology}", platform="tpu", **options)
        except Exception as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"--hardware={self.name}: {reason}; pip install t5x-lite[tpu] brings libtpu, and its "
                "shapes are those that Google rents out"
            ) from error
        return sorted(topology.devices, key=lambda d: (getattr(d, "slice_index", 0) or 0, d.id))
