"""Checkpoints with Orbax: MODEL_DIR/checkpoints/<step>/{params, opt_state, data, meta}.

    params, opt_state   arrays, written by all processes at once, readable on any mesh
    data                where every stream of the training data stands
    meta                the model's configuration, the vocabulary and the step, as JSON: a checkpoint explains itself
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite.errors import UserError
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

    def save(self, state: TrainState, data: dict[str, np.ndarray], meta: dict[str, Any]) -> bool:
        """Starts saving `state` under its step; does nothing where that step is saved already.

        The state may be donated to the next step as soon as this returns.

        Args:
          data: int64 arrays, the same on every process.
          meta: JSON-able.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return False
        # On CPU a host "copy" of a device array is the array itself, which the next step's donation overwrites while
        # it is being written.
        params, opt_state = state.params, state.opt_state
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
        _check_params(self.folder / str(step), abstract.params)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target[0]),
                opt_state=ocp.args.StandardRestore(_as_dict(target[1])),
                data=ocp.args.StandardRestore(data),
            ),
        )
        opt_state = _from_dict(restored["opt_state"], abstract.opt_state)
        scalar = jax.device_put(jnp.asarray(step, jnp.int32), shardings.step)
        return Restored(TrainState(scalar, restored["params"], opt_state), restored["data"], meta)


def initialise(path, state: TrainState, shardings: TrainState, *, restore_optimizer_state: bool = False) -> tuple:
    """Parameters of another run's checkpoint in place of `state`'s own, whose step stays as it is.

    Args:
      path: MODEL_DIR, its `checkpoints` folder, one step's folder, or a checkpoint of another system.
      restore_optimizer_state: take the optimizer's state too.

    Returns:
      The new state, and the step of the checkpoint.
    """
    if is_foreign(path):
        from t5x_lite.interop import loading  # late: it imports this module

        return loading.initialise(path, state, shardings, restore_optimizer_state)
    folder = find_step(path)
    abstract = jax.eval_shape(lambda: state)
    _check_params(folder, abstract.params)
    params = _restore_item(folder, "params", jax.tree.map(_with_sharding, abstract.params, shardings.params))
    opt_state = state.opt_state
    if restore_optimizer_state:
        target = jax.tree.map(_with_sharding, abstract.opt_state, shardings.opt_state)
        opt_state = _from_dict(_restore_item(folder, "opt_state", _as_dict(target)), abstract.opt_state)
    return TrainState(state.step, params, opt_state), int(folder.name)


def load_for_inference(path, step: int | None = None) -> tuple[Model, Any, dict[str, Any]]:
    """The model, its parameters (on this process's default device) and the checkpoint's meta.

    Args:
      path: MODEL_DIR, its `checkpoints` folder (the newest step, or `step`), one step's folder, or a checkpoint of
        another system.

    Raises:
      UserError: there is no checkpoint.
    """
    if is_foreign(path):
        from t5x_lite.interop import loading  # late: it imports this module

        return loading.load_for_inference(path, step)
    folder = find_step(path, step)
    meta = read_meta(folder)
    model = Model(T5Config.from_dict(meta["model"]))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), model.abstract_params())
    return model, _restore_item(folder, "params", target), meta


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


def _restore_item(folder: epath.Path, item: str, target):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(_absolute(folder / item), target)


def _absolute(path: epath.Path) -> epath.Path:
    # Orbax wants an absolute path; resolving would spoil one with a scheme.
    return path if "://" in str(path) else path.resolve()


def _with_sharding(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_params(folder: epath.Path, expected) -> None:
    """Raises UserError that names what differs between the checkpoint's parameters and the model's."""
    have = {path_name(path): tuple(leaf.shape) for path, leaf in item_metadata(folder / "params")}
    want = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(expected)[0]}
    wrong = [f"{n} missing" for n in sorted(want.keys() - have.keys())]
    wrong += [f"{n} not in the model" for n in sorted(have.keys() - want.keys())]
    wrong += [f"{n} is {have[n]}, not {want[n]}" for n in sorted(want.keys() & have.keys()) if have[n] != want[n]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{folder} does not fit the configured model: {'; '.join(wrong[:3])}{more}; use its model file")


def _as_dict(tree) -> dict[str, Any]:
    """An optax state as a flat dictionary of its arrays by path: names in the file, not Python classes."""
    return {path_name(path).replace("/", "."): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _from_dict(flat: dict[str, Any], like):
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path).replace("/", ".")], like)
