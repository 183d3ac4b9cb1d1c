"""Checkpoints with Orbax: MODEL_DIR/checkpoints/<step>/{params, opt_state, data, meta}.

    params, opt_state   arrays, written by all processes at once, readable on any mesh
    data                where every stream of the training data stands
    meta                the model's configuration, the vocabulary and the step, as JSON: a checkpoint explains itself

A checkpoint of a run that trains few parameters may hold only those. Its meta then has `base`: where the checkpoint
lies that has the others, and their fingerprint, so that another base is not taken for it.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.finetuning import join, select
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import path_name
from t5x_lite.trainer import TrainState

FOLDER = "checkpoints"
ITEMS = ("params", "opt_state", "data", "meta")


@dataclasses.dataclass(frozen=True)
class Restored:
    state: TrainState
    data: dict[str, np.ndarray]
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores the training state of one MODEL_DIR; saving goes on in the background while steps go on."""

    def __init__(self, model_dir, max_to_keep: int | None = None, asynchronous: bool = True):
        self.folder = epath.Path(model_dir) / FOLDER
        self._manager = ocp.CheckpointManager(
            _absolute(self.folder),
            item_names=ITEMS,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep, enable_async_checkpointing=asynchronous, create=True
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, data: dict[str, np.ndarray], meta: dict[str, Any], only: Collection[str] | None = None
    ) -> bool:
        """Starts saving `state` under its step; does nothing where that step is saved already.

        The state may be donated to the next step as soon as this returns.

        Args:
          data: int64 arrays, the same on every process.
          meta: JSON-able.
          only: paths of the parameters to write; the others are read from meta["base"] (see `base_of`). None for all.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return False
        # On CPU a host "copy" of a device array is the array itself, which the next step's donation overwrites while
        # it is being written.
        params, opt_state = state.params, state.opt_state
        if only is not None:
            params = select(params, lambda path: path in only)
        if jax.default_backend() == "cpu":
            params, opt_state = jax.tree.map(jnp.copy, (params, opt_state))
        return self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(_as_dict(opt_state)),
                data=ocp.args.StandardSave(data),
                meta=ocp.args.JsonSave({**meta, "step": step}),
            ),
        )

    def wait(self) -> None:
        """Until what was being saved is complete. Raises what went wrong while saving."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def restore(self, abstract: TrainState, shardings: TrainState, data: dict[str, np.ndarray]) -> Restored | None:
        """The newest checkpoint on the given mesh, whatever mesh it was saved from; None when there is none.

        Raises:
          UserError: its parameters are not those of the configured model (each difference is named).
        """
        step = self.latest_step()
        if step is None:
            return None
        meta = read_meta(self.folder / str(step))
        target = jax.tree.map(_with_sharding, (abstract.params, abstract.opt_state), shardings[1:])
        params = _restore_params(self.folder / str(step), target[0])
        opt_state = _as_dict(target[1])
        _check_opt_state(self.folder / str(step), opt_state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                opt_state=ocp.args.StandardRestore(opt_state),
                data=ocp.args.StandardRestore(data),
            ),
        )
        opt_state = _from_dict(restored["opt_state"], abstract.opt_state)
        scalar = jax.device_put(jnp.asarray(step, jnp.int32), shardings.step)
        return Restored(TrainState(scalar, params, opt_state), restored["data"], meta)


def initialise(
    path, state: TrainState, shardings: TrainState, *, restore_optimizer_state: bool = False,
    may_lack: Collection[str] = (),
) -> tuple:
    """Parameters of another run's checkpoint in place of `state`'s own, whose step stays as it is.

    Args:
      path: MODEL_DIR, its `checkpoints` folder, one step's folder, or a checkpoint of another system.
      restore_optimizer_state: take the optimizer's state too.
      may_lack: paths of parameters that keep `state`'s values where the checkpoint does not have them.

    Returns:
      The new state, and the step of the checkpoint.
    """
    if is_foreign(path):
        from t5x_lite.interop import loading  # late: it imports this module

        return loading.initialise(path, state, shardings, restore_optimizer_state, may_lack)
    folder = find_step(path)
    abstract = jax.eval_shape(lambda: state)
    found = _restore_params(folder, jax.tree.map(_with_sharding, abstract.params, shardings.params), may_lack)
    have = dict(_flatten(found))
    params = join(found, select(state.params, lambda path: path not in have))
    opt_state = state.opt_state
    if restore_optimizer_state:
        target = _as_dict(jax.tree.map(_with_sharding, abstract.opt_state, shardings.opt_state))
        _check_opt_state(folder, target)
        opt_state = _from_dict(_restore_item(folder, "opt_state", target), abstract.opt_state)
    return TrainState(state.step, params, opt_state), int(folder.name)


def load_for_inference(path, step: int | None = None) -> tuple[Model, Any, dict[str, Any]]:
    """The model, its parameters (on this process's default device) and the checkpoint's meta.

    Args:
      path: MODEL_DIR, its `checkpoints` folder (the newest step, or `step`), one step's folder, or a checkpoint of
        another system.

    Raises:
      UserError: there is no checkpoint, or its base is gone.
    """
    if is_foreign(path):
        from t5x_lite.interop import loading  # late: it imports this module

        return loading.load_for_inference(path, step)
    folder = find_step(path, step)
    meta = read_meta(folder)
    model = Model(T5Config.from_dict(meta["model"]))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), model.abstract_params())
    return model, _restore_params(folder, target), meta


def steps(path) -> list[int]:
    """Steps of the complete checkpoints under MODEL_DIR or its `checkpoints` folder, in order."""
    folder = epath.Path(path)
    if (folder / FOLDER).exists():
        folder = folder / FOLDER
    if not folder.is_dir():
        return []
    # Orbax writes under another name and renames when everything is there.
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "meta").exists())


def is_foreign(path) -> bool:
    """Whether another system's checkpoint is there, and none of this project.

    Raises:
      UserError: there is no checkpoint of any kind.
    """
    if is_step(epath.Path(path)) or steps(path):
        return False
    from t5x_lite.interop import formats  # late: it imports this module

    return formats.detect(path)[0] != formats.NATIVE


def is_step(folder: epath.Path) -> bool:
    """Whether this is the folder of one complete checkpoint."""
    return folder.name.isdigit() and (folder / "params").exists()


def find_step(path, step: int | None = None) -> epath.Path:
    """Folder of one complete checkpoint: the one named by `path`, else `step` or the newest one below it."""
    folder = epath.Path(path)
    if is_step(folder):
        return folder
    found = steps(folder)
    if not found:
        raise UserError(
            f"no checkpoint under {path}: name a MODEL_DIR, its {FOLDER} folder, or one step such as "
            f"{folder / FOLDER / '1000'}"
        )
    if step is not None and step not in found:
        raise UserError(f"no checkpoint of step {step} under {path}; there are {', '.join(map(str, found))}")
    root = folder / FOLDER if (folder / FOLDER).exists() else folder
    return root / str(found[-1] if step is None else step)


def read_meta(folder) -> dict[str, Any]:
    folder = epath.Path(folder)
    try:
        return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(_absolute(folder / "meta"))
    except (FileNotFoundError, ValueError) as e:
        raise UserError(f"{folder} is no checkpoint of this project: its `meta` cannot be read ({e})") from e


def item_metadata(folder: epath.Path) -> list[tuple[tuple, Any]]:
    """Key path and metadata (shape, dtype) of each array of one item."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(_absolute(folder))
    found = getattr(metadata, "item_metadata", metadata)
    found = getattr(found, "tree", found)
    return jax.tree_util.tree_flatten_with_path(found, is_leaf=lambda x: hasattr(x, "shape"))[0]


def _restore_item(folder: epath.Path, item: str, target, partial: bool = False):
    """partial: `target` is a part of what was saved."""
    if partial:
        arguments = ocp.args.PyTreeRestore(
            item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(_absolute(folder / item), args=arguments)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(_absolute(folder / item), target)


def _absolute(path: epath.Path) -> epath.Path:
    # Orbax wants an absolute path; resolving would spoil one with a scheme.
    return path if "://" in str(path) else path.resolve()


def _with_sharding(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def base_of(path, params, only: Collection[str]) -> dict[str, str]:
    """What meta["base"] says of the checkpoint below `path`, from which all but `only` of `params` came."""
    return {"path": str(_absolute(find_step(path))), "fingerprint": _fingerprint(select(params, lambda p: p not in only))}


def _restore_params(folder: epath.Path, target, may_lack: Collection[str] = ()):
    """`target`'s arrays, from `folder` and, where it holds only what was trained, from its base and the base's own.

    Args:
      target: tree of `jax.ShapeDtypeStruct` with shardings.
      may_lack: paths that are left out where no checkpoint has them.

    Raises:
      UserError: parameters differ (each difference is named), or a base is gone or no longer the same.
    """
    layers = list(with_bases(folder))
    have: dict[str, tuple[epath.Path, tuple[int, ...]]] = {}
    for layer, _, shapes in layers:
        for name, shape in shapes.items():
            have.setdefault(name, (layer, shape))
    _check_params(folder, {name: shape for name, (_, shape) in have.items()}, target, may_lack)
    params: Any = {}
    for layer, _, shapes in layers:
        part = select(target, lambda path, layer=layer: path in have and have[path][0] == layer)
        if part:
            whole = len(_flatten(part)) == len(shapes)
            params = join(params, _restore_item(layer, "params", part, partial=not whole))
    _, base, own = layers[0]
    if base and _fingerprint(select(params, lambda path: path not in own)) != base["fingerprint"]:
        raise UserError(f"{folder} was trained on top of {base['path']}, which holds other parameters now: put the old "
                        "checkpoint back there")
    return params


def with_bases(folder: epath.Path):
    """(folder, its meta's base or None, shapes of its parameters by path) of a checkpoint, its base, the base's base."""
    while folder is not None:
        base = read_meta(folder).get("base")
        yield folder, base, _shapes(folder, "params")
        if base is None:
            return
        below = epath.Path(base["path"])
        if not (below / "params").exists():
            raise UserError(f"{folder} holds only the trained parameters, and its base checkpoint {below} is gone: put "
                            "it back there (a run that is to stand alone needs train.save_only_trained = False)")
        folder = below


def _fingerprint(params) -> str:
    """Of the parameters' names and bits: the same on any mesh, and in any layout of the bytes on disk."""
    leaves = sorted(_flatten(params))
    return hashlib.sha256(repr([(name, int(_sum_of_bits(leaf))) for name, leaf in leaves]).encode()).hexdigest()[:16]


@jax.jit
def _sum_of_bits(x: jax.Array) -> jax.Array:
    # Whole numbers, modulo 2^32: no order of summation changes the sum.
    words = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize])
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)


def _shapes(folder: epath.Path, item: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's arrays by path, read without the arrays."""
    return {path_name(path): tuple(leaf.shape) for path, leaf in item_metadata(folder / item)}


def _check_params(folder: epath.Path, have: Mapping[str, tuple[int, ...]], expected, may_lack: Collection[str]) -> None:
    """Raises UserError that names what differs between the checkpoint's parameters and the model's."""
    want = {name: leaf.shape for name, leaf in _flatten(expected)}
    wrong = [f"{n} missing" for n in sorted(want.keys() - have.keys() - set(may_lack))]
    wrong += [f"{n} not in the model" for n in sorted(have.keys() - want.keys())]
    wrong += [f"{n} is {have[n]}, not {want[n]}" for n in sorted(want.keys() & have.keys()) if have[n] != want[n]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{folder} does not fit the configured model: {'; '.join(wrong[:3])}{more}; use its model file")


def _check_opt_state(folder: epath.Path, expected: Mapping[str, Any]) -> None:
    """Raises UserError where the optimizer's state is another's: a different optimizer, or other parameters trained."""
    have, want = _shapes(folder, "opt_state"), {name: leaf.shape for name, leaf in expected.items()}
    differ = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
    if differ:
        raise UserError(f"{folder} has another optimizer's state ({len(differ)} arrays differ, such as {differ[0]}): "
                        "use its optimizer and Trainable.patterns, or another MODEL_DIR")


def _flatten(tree) -> list[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _as_dict(tree) -> dict[str, Any]:
    """An optax state as a flat dictionary of its arrays by path: names in the file, not Python classes."""
    return {path_name(path).replace("/", "."): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _from_dict(flat: dict[str, Any], like):
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path).replace("/", ".")], like)
