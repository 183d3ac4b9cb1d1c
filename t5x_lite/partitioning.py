"""Where arrays live: one named mesh, and a table that maps logical axis names to its axes.

Changing the parallelism is changing the table. The models name their axes and know nothing else: `constrain` is a
no-op until a partitioner is in force.
"""

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import gin
from t5x_lite import together
from t5x_lite.errors import UserError, first_line

MESH_AXES = ("data", "fsdp", "tensor")
_PLATFORMS = ("tpu", "gpu", "cpu")

# (logical axis, mesh axes). Parameters shard their width over `fsdp` and the wide side of every product over `tensor`;
# activations shard the batch over both data axes and keep their own width whole. Of an array's axes the one that stands
# first here gets a mesh axis: with ("length", "tensor") positions share what no heads, hidden units or words do
# (sequence parallelism, Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198).
DEFAULT_RULES: tuple[tuple[str, Any], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("joined_kv", "tensor"),
    ("length", None),
    ("activation", None),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("adapter", None),
    ("lora_rank", None),
    ("prompt", None),
)

_active: contextvars.ContextVar["Partitioner | None"] = contextvars.ContextVar("partitioner", default=None)


@gin.configurable("Mesh", module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices' arrangement, as gin binds it.

    Attributes:
      shape: size of each mesh axis, `{"data": -1, "fsdp": 1, "tensor": 1}`; one may be -1 and takes what is left.
      rules: pairs (logical axis, mesh axis, tuple of them, or None). A mesh axis shards one axis of an array: that
        which stands first in the table.
      platform: "tpu", "gpu" or "cpu", what the devices must be: JAX goes on with the CPU where it finds nothing else.
      num_devices: how many there must be, over all processes.
    """

    shape: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": -1, "fsdp": 1, "tensor": 1})
    rules: tuple[tuple[str, Any], ...] = DEFAULT_RULES
    platform: str | None = None
    num_devices: int | None = None

    def build(self, devices=None) -> "Partitioner":
        """
        Args:
          devices: instead of those that are here, which must be what the configuration names.

        Raises:
          UserError: the shape does not fit the devices or names an unknown axis, or they are not those that are named.
        """
        devices = self._here() if devices is None else list(devices)
        shape = dict(self.shape)
        unknown = sorted(set(shape) - set(MESH_AXES))
        if unknown:
            raise UserError(f"MESH names unknown axes {unknown}; the axes are {', '.join(MESH_AXES)}")
        shape = {axis: int(shape.get(axis, 1)) for axis in MESH_AXES}
        free = [axis for axis, size in shape.items() if size == -1]
        fixed = math.prod(size for size in shape.values() if size != -1)
        if len(free) > 1 or fixed < 1 or any(size < 1 and size != -1 for size in shape.values()):
            raise UserError(f"MESH = {shape}: sizes are at least 1, and one of them may be -1")
        if free and len(devices) % fixed == 0:
            shape[free[0]] = len(devices) // fixed
        if math.prod(shape.values()) != len(devices):
            raise UserError(
                f"MESH = {dict(self.shape)} does not fit the {len(devices)} {devices[0].platform} device(s) found; "
                'let one axis take what is left: MESH = {"data": -1, "fsdp": 1, "tensor": 1}'
            )
        sizes = tuple(shape.values())
        mesh = Mesh(_arranged(devices, sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))
        if together.several() and devices[0].platform == "cpu":
            _introduce(mesh)
        return Partitioner(mesh, tuple((name, axes) for name, axes in self.rules))

    def _here(self) -> list[jax.Device]:
        if self.platform not in (None, *_PLATFORMS):
            raise UserError(f"Mesh.platform = {self.platform!r}: name one of {', '.join(_PLATFORMS)}")
        try:
            devices = jax.devices()
        except RuntimeError as e:  # JAX_PLATFORMS names what cannot be used
            raise UserError(f"JAX finds no devices ({first_line(e)}): see to drivers and JAX_PLATFORMS") from e
        found = f"JAX found {len(devices)} {devices[0].platform} device(s)"
        if self.platform is not None and devices[0].platform != self.platform:
            raise UserError(
                f"Mesh.platform = {self.platform!r}, but {found}: see to drivers and jax[{self.platform}], "
                "or use another file of gin/mesh"
            )
        if self.num_devices is not None and len(devices) != self.num_devices:
            raise UserError(
                f"Mesh.num_devices = {self.num_devices}, but {found} in {jax.process_count()} process(es): "
                "see to those that are missing, or set what is there"
            )
        return devices


def _arranged(devices, sizes: tuple[int, ...]) -> np.ndarray:
    """Devices as an array of these sizes, neighbours on the wires being neighbours along its last axes.

    TPU slices, which only the network joins, go along the first axis.
    """
    slices = {getattr(d, "slice_index", None) for d in devices} if devices[0].platform == "tpu" else {None}
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % len(slices):
        shape = dict(zip(MESH_AXES, sizes, strict=True))
        raise UserError(
            f"MESH = {shape}: the {len(slices)} slices are joined by the network alone and share the axis "
            f"{MESH_AXES[0]}; make it a multiple of {len(slices)}"
        )
    own = (sizes[0] // len(slices), *sizes[1:])
    return mesh_utils.create_hybrid_device_mesh(
        own, (len(slices), *(1,) * len(own[1:])), devices, allow_split_physical_axes=True
    )


def _introduce(mesh: Mesh) -> None:
    """Has CPU devices of several processes exchange something along each set of mesh axes, all at one time.

    They find each other at their first exchange, and whoever comes to that 30 s after another, as it took longer to
    compile a step, is found no more. Afterwards they wait for each other as long as it takes.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    zeros = place(np.zeros(1, np.float32), everywhere)
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    for chosen in itertools.chain.from_iterable(itertools.combinations(axes, n + 1) for n in range(len(axes))):
        add = jax.shard_map(
            functools.partial(jax.lax.psum, axis_name=chosen),
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        compiled = jax.jit(add).lower(zeros).compile()
        together.gathered("introduced", "")
        compiled(zeros).block_until_ready()


class Partitioner:
    """A mesh with its rules: shardings for parameters, optimizer state and batches."""

    def __init__(self, mesh: jax.sharding.Mesh, rules: tuple[tuple[str, Any], ...] = DEFAULT_RULES):
        self.mesh = mesh
        self.rules = dict(rules)

    def spec(self, logical_axes: tuple[str | None, ...]) -> PartitionSpec:
        unknown = [name for name in logical_axes if name is not None and name not in self.rules]
        if unknown:
            raise UserError(f"Mesh.rules has no rule for the logical axes {unknown}; add (name, None) to replicate")
        given, taken = {}, set()
        for name, axes in self.rules.items():
            if name in logical_axes and not taken & set(_as_tuple(axes)):
                given[name] = axes
                taken |= set(_as_tuple(axes))
        return PartitionSpec(*(given.get(name) for name in logical_axes))

    def sharding(self, *logical_axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(logical_axes))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Of every array of a batch: rows over the data axes."""
        return self.sharding("batch")

    @property
    def batch_shards(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in _as_tuple(self.rules["batch"]))

    def divides(self, shape: tuple[int, ...], spec: Iterable[Any]) -> bool:
        """Whether each of the axes is cut into equal parts."""
        parts = (math.prod(self.mesh.shape[axis] for axis in _as_tuple(axes)) for axes in spec)
        return not any(n % p for n, p in zip(shape, parts, strict=False))

    def tree(self, abstract: Any, logical_axes: Any) -> Any:
        """NamedSharding for each leaf; both trees have the same structure, axes being tuples of names.

        Raises:
          UserError: a dimension that its mesh axes do not divide, named with its parameter.
        """
        axes_leaves = leaves_by_path(logical_axes, _is_axes)

        def one(path, leaf):
            name = path_name(path)
            sharding = self.sharding(*axes_leaves[name])
            for size, axis, mesh_axes in zip(leaf.shape, axes_leaves[name], sharding.spec, strict=True):
                parts = math.prod(self.mesh.shape[a] for a in _as_tuple(mesh_axes))
                if size % parts:
                    raise UserError(
                        f"parameter {name}: its axis {axis!r} of {size} is not divisible by mesh axis "
                        f"{mesh_axes!r} of {parts}; change MESH or Mesh.rules"
                    )
            return sharding

        return jax.tree_util.tree_map_with_path(one, abstract)

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """While in force, `constrain` inside traced code pins activations to this mesh."""
        token = _active.set(self)
        try:
            with jax.set_mesh(self.mesh):
                yield
        finally:
            _active.reset(token)

    def describe(self) -> str:
        kinds = sorted({d.device_kind for d in self.mesh.devices.flat})
        shape = " × ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        return f"{self.mesh.devices.size} device(s) ({', '.join(kinds)}), mesh {shape}"


def place(array: np.ndarray | np.generic, sharding: jax.sharding.Sharding) -> jax.Array:
    """The array, which every process has, on the devices; each process gives its own their part."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(tree: Any) -> Any:
    """Whole NumPy arrays of arrays that lie on the devices of all processes, which all have to ask."""
    if jax.process_count() > 1:
        tree = jax.tree.map(lambda x: _laid(x, NamedSharding(x.sharding.mesh, PartitionSpec())), tree)
    return jax.tree.map(np.asarray, tree)


@functools.partial(jax.jit, static_argnums=1)
def _laid(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, sharding)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pin an activation's sharding by the names of its axes; x itself where no partitioner is in force.

    An axis that its devices do not divide, such as the one position of a decoding step, stays whole.
    """
    partitioner = _active.get()
    if partitioner is None or partitioner.mesh.devices.size == 1:
        return x
    spec = partitioner.spec(logical_axes)
    spec = PartitionSpec(
        *(axes if partitioner.divides((n,), (axes,)) else None for n, axes in zip(x.shape, spec, strict=True))
    )
    return jax.lax.with_sharding_constraint(x, NamedSharding(partitioner.mesh, spec))


def by_axes(function: Callable, in_axes, out_axes, summed: int | None = None) -> Callable:
    """function, run by every device on its own part of the arguments.

    For what XLA cannot take apart: kernels, and operations of which it does not see that no row needs another, so that
    it would gather the batch and have every device work on all of it (top_k, for one).

    Args:
      in_axes, out_axes: logical names of the axes of each argument and each result.
      summed: results from this one on are sums over the rows of the batch, and are added up over the devices.

    Returns:
      The function; where the devices do not divide an argument, each of them works on all of it.
    """
    partitioner = _active.get()
    if partitioner is None or partitioner.mesh.devices.size == 1:
        return function
    rows = _as_tuple(partitioner.rules["batch"])

    def local(*arguments):
        results = function(*arguments)
        return results if summed is None else (*results[:summed], *jax.lax.psum(results[summed:], rows))

    in_specs, out_specs = (tuple(map(partitioner.spec, axes)) for axes in (in_axes, out_axes))
    shared = jax.shard_map(local, mesh=partitioner.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def run(*arguments):
        fits = all(partitioner.divides(x.shape, spec) for x, spec in zip(arguments, in_specs, strict=True))
        return (shared if fits else function)(*arguments)

    return run


def optimizer_state_axes(abstract_state: Any, abstract_params: Any, logical_axes: Any) -> Any:
    """Logical axes of an optimizer's state, worked out from the parameters that it mirrors.

    A leaf whose path ends in a parameter's path is that parameter's slot. It has the parameter's own axes (momenta),
    or those left after a reduction over one dimension (Adafactor's factored moments: `v_row` is summed over the
    largest dimension, `v_col` over the second largest, in optax), or none (placeholders, counters).

    Returns:
      A flat dictionary from path to a tuple of names.
    """
    params = {name: leaf.shape for name, leaf in leaves_by_path(abstract_params).items()}
    axes = leaves_by_path(logical_axes, _is_axes)
    result = {}
    for name, leaf in leaves_by_path(abstract_state).items():
        owner = _owner(name, params)
        result[name] = _slot_axes(name, leaf.shape, params[owner], axes[owner]) if owner else (None,) * len(leaf.shape)
    return result


def _owner(name: str, params: Mapping[str, Any]) -> str | None:
    parts = name.split("/")
    for start in range(len(parts)):
        candidate = "/".join(parts[start:])
        if candidate in params:
            return candidate
    return None


def _slot_axes(name: str, shape, param_shape, param_axes) -> tuple[str | None, ...]:
    if shape == param_shape:
        return param_axes
    if len(shape) == len(param_shape) - 1:
        # Stacked layers are factored one by one, so their leading axis takes no part in the order of sizes.
        lead = 1 if param_axes[0] == "layers" else 0
        order = np.argsort(param_shape[lead:], kind="stable") + lead
        reduced = int(order[-1] if "v_row" in name.split("/") else order[-2])
        if shape == tuple(np.delete(param_shape, reduced)):
            return tuple(a for i, a in enumerate(param_axes) if i != reduced)
    if shape and shape[0] == param_shape[0] and param_axes[0] == "layers":
        return ("layers", *(None,) * (len(shape) - 1))
    return (None,) * len(shape)


def path_name(path) -> str:
    """A jax key path as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaves_by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """{`path_name`: leaf}, in the tree's own order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]}


def _is_axes(x) -> bool:
    return isinstance(x, tuple) and type(x) is tuple and all(a is None or isinstance(a, str) for a in x)


def _as_tuple(axes) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
