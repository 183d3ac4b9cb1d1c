"""Checkpoints of T5X (https://github.com/google-research/t5x): a msgpack file `checkpoint` beside folders of zarr.

The msgpack tree is `{version, optimizer: {target, state: {step, param_states}}}`; large arrays in it stand as
tensorstore specs of the folders `target.…` and `state.…`, small ones as they are. Unscanned models have our paths.
Scanned ones have `encoder/encoder/…` for our `encoder/layers/…`, the layers on axis 1, and attention kernels with heads
and head width apart.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

from t5x_lite import optimizers
from t5x_lite.checkpoints import as_dict
from t5x_lite.errors import UserError
from t5x_lite.interop import shapes, zarr
from t5x_lite.interop import weights as w
from t5x_lite.models import T5Config

FILE = "checkpoint"
VERSION = 3
SLOTS = ("m", "v", "v_col", "v_row")  # of their Adafactor, for each parameter; zeros of shape (1,) where unused


def is_one(folder: epath.Path) -> bool:
    """One checkpoint's folder, by its content: TensorFlow's own `checkpoint` is a text."""
    if not (folder / FILE).exists():
        return False
    with (folder / FILE).open("rb") as file:
        first = file.read(1)
    return bool(first) and first[0] & 0xF0 == 0x80  # a msgpack map of few keys


def steps(folder: epath.Path) -> dict[int, epath.Path]:
    """Step -> folder of the checkpoints `checkpoint_N` below a T5X model_dir."""
    found = {}
    for at in folder.glob("checkpoint_*"):
        number = at.name.removeprefix("checkpoint_")
        if number.isdigit() and is_one(at):
            found[int(number)] = at
    return dict(sorted(found.items()))


def read(path, *, model: T5Config | None = None, rules: w.Rules = (), optimizer_state: bool = False) -> w.Weights:
    """One checkpoint, unscanned or scanned.

    Args:
      model: what the shapes do not tell, which is the activation and the distance of the last position bucket; by
        default `shapes.config_of` guesses.
      rules: `weights.apply_rules` on their parameters' paths, `encoder/layers_0/attention/query/kernel`.
      optimizer_state: Adafactor's second moments, too.

    Raises:
      UserError: tensors that do not fit the model, or an optimizer's state that ours has no place for.
    """
    folder = epath.Path(path)
    try:
        tree = serialization.msgpack_restore((folder / FILE).read_bytes())["optimizer"]
        leaves = traverse_util.flatten_dict(tree["target"], is_leaf=lambda _, x: "driver" in x, sep="/")
        step = int(tree["state"]["step"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder / FILE} is no checkpoint of T5X ({type(e).__name__}: {e})") from e
    theirs = w.apply_rules({path: _tensor(folder, path, leaf) for path, leaf in leaves.items()}, rules)
    params = w.split({_our_path(path): _layers_first(path, tensor) for path, tensor in theirs.items()})
    config = model or shapes.config_of(params, str(folder))
    opt_state = None
    if optimizer_state:
        states = traverse_util.flatten_dict(tree["state"]["param_states"], is_leaf=lambda _, x: "driver" in x, sep="/")
        states = {path: _tensor(folder, path, leaf) for path, leaf in states.items()}
        opt_state = _read_state(states, theirs, params, step)
    weights = w.Weights(config, params, step, opt_state=opt_state)
    return weights.cast(w.common_dtype(params.values()))


def write(folder: epath.Path, weights: w.Weights) -> None:
    """Writes T5X's model_dir `folder` with one unscanned checkpoint, Adafactor's state included where there is one.

    Raises:
      UserError: the state of another optimizer.
    """
    at = folder / f"checkpoint_{weights.step}"
    at.mkdir(parents=True)
    target = {path: _write(at, f"target.{path}", tensor) for path, tensor in weights.params.items()}
    states = {}
    for name, tensor in _their_state(weights).items():
        zarr = name.endswith("/v") and tensor.shape != (1,)
        states[name] = _write(at, f"state.param_states.{name}", tensor) if zarr else np.asarray(tensor.read())
    optimizer = {
        "target": w.nested(target),
        "state": {"step": np.asarray(weights.step, np.int32), "param_states": w.nested(states)},
    }
    tree = {"version": VERSION, "optimizer": optimizer}
    (at / FILE).write_bytes(serialization.msgpack_serialize(tree))


# ----------------------------------------------------------------------------------------------------------------------
# Arrays
# ----------------------------------------------------------------------------------------------------------------------


def _tensor(folder: epath.Path, path: str, leaf) -> w.Tensor:
    if isinstance(leaf, Mapping):
        # Only the last part of the path: what was written to one bucket lies in another, or on disk.
        name = pathlib.PurePosixPath(leaf["kvstore"]["path"]).name
        try:
            tensor = zarr.tensor({"driver": leaf["driver"], "kvstore": zarr.kvstore(folder / name)})
        except ValueError as e:
            raise UserError(f"{folder}: {path} cannot be read: {folder / name} is missing or damaged") from e
    else:
        tensor = w.Tensor.of(np.asarray(leaf))
    if tensor.dtype != np.uint16:
        return tensor
    # Version 2 stored the bits of bfloat16 as uint16.
    return w.Tensor(tensor.shape, jnp.dtype(jnp.bfloat16), lambda: tensor.read().view(jnp.bfloat16))


def _write(folder: epath.Path, name: str, tensor: w.Tensor) -> dict[str, Any]:
    """Writes one array; returns the spec that stands for it in the msgpack tree."""
    name = name.replace("/", ".")
    metadata = {
        "shape": list(tensor.shape),
        "chunks": _chunks(tensor.shape, tensor.dtype.itemsize),
        "compressor": {"id": "gzip", "level": 1},
    }
    spec = {"driver": "zarr", "dtype": str(tensor.dtype), "metadata": metadata}
    store = ts.open({**spec, "kvstore": zarr.kvstore(folder / name)}, create=True).result()
    store.write(np.asarray(tensor.read())).result()
    return {**spec, "kvstore": {"driver": "file", "path": f"{name}/"}}


def _chunks(shape: tuple[int, ...], itemsize: int, limit: int = 64 * 2**20) -> list[int]:
    """Whole rows, as many as make up to `limit` bytes."""
    row = int(np.prod(shape[1:], dtype=np.int64)) * itemsize
    return [max(1, min(shape[0], limit // max(row, 1))), *shape[1:]]


# ----------------------------------------------------------------------------------------------------------------------
# Scanned layers
# ----------------------------------------------------------------------------------------------------------------------


def _stack_of(path: str) -> str | None:
    """`encoder` where the path is `encoder/encoder/…`, a scanned stack."""
    parts = path.split("/")
    return parts[0] if len(parts) > 2 and parts[0] == parts[1] else None


def _our_path(path: str) -> str:
    stack = _stack_of(path)
    return path if stack is None else f"{stack}/layers/" + path.removeprefix(f"{stack}/{stack}/")


def _axes(path: str, rank: int) -> str:
    """Letters of a scanned parameter's axes, as in `t5x_lite.models`; j for heads and head width joined."""
    part = path.split("/")[-2]
    if part in ("query", "key", "value"):
        return "dlhk" if rank == 4 else "dlj"
    if part == "out":
        return "hlkd" if rank == 4 else "jld"
    return {"wo": "fld", "relpos_bias": "hlr"}.get(part, "dlf" if part.startswith("wi") else "dl")


def _joined(tensor: w.Tensor, axes: str) -> w.Tensor:
    """Layers first; heads and head width as one."""
    order = (axes.index("l"), *(i for i, axis in enumerate(axes) if axis != "l"))
    tensor = tensor.transposed(order)
    axes = "".join(axes[i] for i in order)
    if "hk" not in axes:
        return tensor
    at, shape = axes.index("hk"), tensor.shape
    return tensor.reshaped((*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))


def _layers_first(path: str, tensor: w.Tensor) -> w.Tensor:
    if _stack_of(path) is None:
        return tensor
    axes = _axes(path, len(tensor.shape))
    if len(tensor.shape) != len(axes):
        raise UserError(f"{path} of the T5X checkpoint has {len(tensor.shape)} axes {tensor.shape}, not {len(axes)}")
    return _joined(tensor, axes)


# ----------------------------------------------------------------------------------------------------------------------
# Adafactor's state
# ----------------------------------------------------------------------------------------------------------------------


def _read_state(
    states: dict[str, w.Tensor], theirs: dict[str, w.Tensor], params: dict[str, w.Tensor], step: int
) -> dict[str, w.Tensor]:
    """Our Adafactor's state by its flat names, layers apart."""
    slots: dict[str, dict[str, w.Tensor]] = {}
    for path, tensor in theirs.items():
        found = {slot: states[f"{path}/{slot}"] for slot in SLOTS if f"{path}/{slot}" in states}
        if found.keys() < {"v", "v_row", "v_col"}:
            raise UserError(f"the T5X checkpoint has no Adafactor state of {path}: convert without optimizer_state")
        if "m" in found and found["m"].shape != (1,):
            raise UserError(
                f"the T5X checkpoint's Adafactor has a momentum ({path}/m), which cannot be converted: "
                "convert without optimizer_state"
            )
        for slot in ("v", "v_row", "v_col"):
            moved = _slot_layers(path, slot, found[slot], tensor)
            for our_path, part in w.split({_our_path(path): moved}).items():
                slots.setdefault(our_path, {})[slot] = part
    factored = {path: found["v"].shape == (1,) != params[path].shape for path, found in slots.items()}
    state = {}
    for name, leaf in _abstract_state(params, factored).items():
        slot, owner = _slot_of(name, params)
        if owner is None:
            state[name] = w.Tensor.of(np.full(leaf.shape, step, leaf.dtype))
            continue
        kept = slots[owner][slot]
        if factored[owner] and slot != "v" and kept.shape != leaf.shape:
            # Theirs names rows and columns after the axes' meaning where layers are scanned, optax after their sizes.
            kept = slots[owner]["v_col" if slot == "v_row" else "v_row"]
        elif factored[owner] and slot != "v" and _swapped(owner, params[owner].shape, scanned=owner not in theirs):
            kept = slots[owner]["v_col" if slot == "v_row" else "v_row"]
        if kept.shape != leaf.shape:
            raise UserError(
                f"the T5X checkpoint's state {slot} of {owner} is {kept.shape}, not {leaf.shape}: convert "
                "without optimizer_state"
            )
        state[name] = kept.cast(leaf.dtype)
    return state


def _swapped(path: str, shape: tuple[int, ...], scanned: bool) -> bool:
    """Whether a square matrix's row moments are our column moments.

    In scanned models theirs keeps the model width in `v_row`; optax keeps the first axis of a square matrix.
    """
    return scanned and shape[0] == shape[1] and path.split("/")[-2] in ("out", "wo")


def _slot_layers(path: str, slot: str, state: w.Tensor, parameter: w.Tensor) -> w.Tensor:
    """A slot with its layers first; placeholders once for each layer."""
    if _stack_of(path) is None:
        return state
    axes = _axes(path, len(parameter.shape))
    if state.shape == (1,):
        depth = parameter.shape[axes.index("l")]
        return state.map(lambda a: np.repeat(a[None], depth, axis=0), (depth, 1))
    if slot != "v":  # model width is a row, everything else a column; layers are neither
        axes = "".join(axis for axis in axes if axis == "l" or (axis == "d") == (slot == "v_row"))
    return _joined(state, axes)


def _abstract_state(params: Mapping[str, w.Tensor], factored: Mapping[str, bool]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of our Adafactor's state, of the setting that factors what theirs has factored."""
    tree = w.nested({path: jax.ShapeDtypeStruct(t.shape, jnp.float32) for path, t in params.items()})
    second = {path: sorted(params[path].shape)[-2] for path, yes in factored.items() if yes}
    whole = [sorted(t.shape)[-2] for path, t in params.items() if len(t.shape) > 1 and not factored[path]]
    least = min(second.values(), default=128)
    # Any number from the largest that is whole up to the smallest that is factored: 128, T5's own, where it is one.
    if whole and max(whole) >= least:
        raise UserError(
            "the T5X checkpoint's Adafactor factors some parameters and not others in a way that no "
            "min_dim_size_to_factor gives: convert without optimizer_state"
        )
    size = least if least < 128 or (whole and max(whole) >= 128) else 128
    optimizer = optimizers.adafactor(optimizers.constant_rate(), min_dim_size_to_factor=size)
    return as_dict(jax.eval_shape(optimizer.init, tree))


def _slot_of(name: str, params: Mapping[str, Any]) -> tuple[str, str | None]:
    """`….v_row.encoder.layers_0.mlp.wo.kernel` -> (v_row, encoder/layers_0/mlp/wo/kernel); (…, None) of counters."""
    parts = name.split(".")
    for start in range(1, len(parts)):
        path = "/".join(parts[start:])
        if path in params:
            return parts[start - 1], path
    return parts[-1], None


def _their_state(weights: w.Weights) -> dict[str, w.Tensor]:
    """path/slot -> tensor for T5X's Adafactor; empty where there is no state."""
    if weights.opt_state is None:
        return {}
    state = {}
    for name, tensor in weights.opt_state.items():
        slot, path = _slot_of(name, weights.params)
        if path is not None:
            state[f"{path}/{slot}"] = tensor
    expected = {f"{path}/{slot}" for path in weights.params for slot in ("v", "v_row", "v_col")}
    if state.keys() != expected:
        raise UserError(
            "only the state of Adafactor without momentum can be written for T5X: convert with "
            "--gin.convert.optimizer_state=False"
        )
    for path in weights.params:
        state[f"{path}/m"] = w.Tensor.of(np.zeros((1,), np.float32))
    return state
