"""Checkpoints with Orbax: MODEL_DIR/checkpoints/<step>/{params, opt_state, data, meta}.

    params, opt_state   arrays, written by all processes at once, readable on any mesh
    data                where every stream of the training data stands
    meta                the model's configuration, the vocabulary and the step, as JSON: a checkpoint explains itself;
                        and checksums of all of the above (see checksums.py)

A checkpoint is complete or absent: Orbax writes it under another name and renames it when everything is there; in an
object store, which cannot rename, it puts an object that says so there as the last one. What is damaged later is found
out by the checksums, which are verified whenever arrays are read.

A checkpoint of a run that trains few parameters may hold only those. Its meta then has `base`: where the checkpoint
lies that has the others, and their fingerprint, so that another base is not taken for it.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite import buckets, checksums, save_barriers, together, vocabularies
from t5x_lite.errors import UserError, first_line
from t5x_lite.finetuning import join, select
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import Partitioner, leaves_by_path, path_name, place
from t5x_lite.saving import Keep
from t5x_lite.stored import Damaged, Stored, absolute, is_damage
from t5x_lite.trainer import TrainState

FOLDER = "checkpoints"
ITEMS = ("params", "opt_state", "data", "meta")
_NOTES = "_CHECKPOINT_METADATA"  # as Orbax calls them


@dataclasses.dataclass(frozen=True)
class Restored:
    """What one checkpoint holds: the training state, the positions in the data, and what `meta` says of the run."""

    state: TrainState
    data: dict[str, np.ndarray]
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores the training state of one MODEL_DIR; saving goes on in the background while steps go on.

    Args:
      keep: which checkpoints stay; None for all.
    """

    def __init__(self, model_dir, keep: Keep | None = None, asynchronous: bool = True):
        self.folder = epath.Path(model_dir) / FOLDER
        self._keep, self._asynchronous = keep, asynchronous
        self._metrics: dict[int, dict[str, float]] = {}
        self._barriers = save_barriers.Barriers()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            manager = self._open_manager()
        except Exception as e:
            if not is_damage(e):
                raise
            # Orbax's notes of when each checkpoint was written, which nothing needs, are not as it wrote them.
            for step in self.steps():
                (self.folder / str(step) / _NOTES).unlink(missing_ok=True)
            manager = self._open_manager()
        if self._keep and self._keep.best:
            self._metrics = {step: _metrics(self.folder / str(step)) for step in manager.all_steps()}
        return manager

    def _open_manager(self) -> ocp.CheckpointManager:
        # All processes by name: else Orbax has the devices meet, which they cannot when a process has failed.
        everyone = set(range(jax.process_count())) if together.several() else None
        return ocp.CheckpointManager(
            absolute(self.folder),
            item_names=ITEMS,
            options=ocp.CheckpointManagerOptions(
                enable_async_checkpointing=self._asynchronous,
                create=False,
                cleanup_tmp_directories=True,
                preservation_policy=self,
                atomicity_options=_atomicity(self.folder),
                # Else, where a folder cannot be made, Orbax's threads wait 20 minutes for it, and the process for them.
                async_options=ocp.AsyncOptions(
                    create_directories_asynchronously=False, barrier_sync_fn=self._barriers.in_background
                ),
                multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=everyone),
            ),
        )

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax asks after each save which checkpoints stay."""
        del context
        steps = [info.step for info in checkpoints]
        kept = self._keep.chosen(steps, self._metrics) if self._keep else steps
        return [step in kept for step in steps]

    def steps(self) -> list[int]:
        """Of the complete checkpoints, in order."""
        return steps(self.folder)

    def save(
        self, state: TrainState, data: dict[str, np.ndarray], meta: dict[str, Any], only: Collection[str] | None = None
    ) -> bool:
        """Starts saving `state` under its step; does nothing where that step is saved already.

        The state may be donated to the next step as soon as this returns.

        Args:
          state: without its optimizer's state, {}, it is one to ask or to start from, not to go on from.
          data: int64 arrays, the same on every process; {} for none.
          meta: JSON-able; `meta["metrics"]` is what `Keep.metric` is looked up in.
          only: paths of the parameters to write; the others are read from meta["base"] (see `base_of`). None for all.

        Raises:
          Exception: what the file system said, now or to an earlier save. The next call begins anew.
        """
        step = int(state.step)
        self._check_writable()
        turn = self._barriers.next_turn()
        with self._reopened_on_failure():
            self._manager = self._manager or self._open()
        if step in self._manager.all_steps():
            return False
        # On CPU a host "copy" of a device array is the array itself, which the next step's donation overwrites while
        # it is being written.
        params, opt_state = state.params, state.opt_state
        if only is not None:
            params = select(params, lambda path: path in only)
        if jax.default_backend() == "cpu":
            params, opt_state = jax.tree.map(jnp.copy, (params, opt_state))
        items = {"params": params, "opt_state": as_dict(opt_state)}
        arrays = {item: tree for item, tree in items.items() if tree}  # Orbax writes nothing empty
        sums = {item: checksums.start(tree) for item, tree in arrays.items()}
        self._metrics[step] = dict(meta.get("metrics", {}))
        with self._reopened_on_failure():
            return self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{item: ocp.args.StandardSave(tree) for item, tree in arrays.items()},
                    **({"data": ocp.args.StandardSave(data)} if data else {}),
                    meta=checksums.SealedJsonSave({**meta, "step": step, "data": _digests(data)}, arrays, sums, turn),
                ),
            )

    def _check_writable(self) -> None:
        """Fails on all processes where one cannot write: in Orbax the others would wait for it for minutes."""
        if not together.several():
            return
        problem = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{jax.process_index()}"
            probe.write_text("whether this process can write here")
            probe.unlink()
        except Exception as e:  # of whatever kind: clients of object stores have their own, and the others wait here
            problem = e
        together.agree("writable", problem, OSError)

    @contextlib.contextmanager
    def _reopened_on_failure(self):
        try:
            with self._barriers.in_foreground():
                yield
        except Exception as e:
            self._barriers.turn.give_up(first_line(e))
            self.drop()
            raise

    def drop(self) -> None:
        """What is being saved is not to be: here or in another process it has failed."""
        # The manager's list of checkpoints and its threads are those of a save that never was.
        self._manager = None

    def wait(self) -> None:
        """Until what was being saved is complete. Raises what went wrong while saving."""
        if self._manager is not None:
            with self._reopened_on_failure():
                self._manager.wait_until_finished()

    @property
    def is_saving(self) -> bool:
        """Whether something is being saved in the background."""
        return self._manager is not None and self._manager.is_saving_in_progress()

    def check(self) -> bool:
        """As `wait`, but returns at once while something is still being saved, and whether that is so."""
        if self.is_saving:
            return True
        self.wait()
        return False

    def close(self) -> None:
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *unused):
        # Nothing may stand in the way of what ends the run.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()

    def restore(
        self,
        abstract: TrainState,
        shardings: TrainState,
        data: dict[str, np.ndarray],
        check: Callable[[dict[str, Any]], None] = lambda meta: None,
        warn: Callable[[str], None] = print,
    ) -> Restored | None:
        """The newest intact checkpoint on the given mesh, whatever mesh it was saved from; None when there is none.

        Damaged ones are passed over with a warning, and renamed so that their steps can be saved again.

        Args:
          data: arrays of the names and dtypes to read; the shapes are those of the checkpoint.
          check: is given a checkpoint's meta before its arrays are read, and may refuse it with a UserError.
          warn: is given the warnings.

        Raises:
          UserError: its parameters are not those of the configured model (each difference is named), or all are
            damaged.
          Unreadable: one cannot be read now, for whatever else is the reason: going on from an older one would throw
            steps away.
        """
        self.wait()
        self._manager = self._manager or self._open()
        damaged: dict[int, Damaged] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, abstract, shardings, data, check)
            except Damaged as e:
                damaged[step] = e
                continue
            for at, problem in damaged.items():
                warn(
                    f"warning: {problem}; going on from step {step} instead; what is left of step {at} is now called "
                    f"{self._set_aside(at)}"
                )
            return restored
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is intact ({'; '.join(map(str, damaged.values()))}): put "
                "one back, or begin anew in another MODEL_DIR"
            )
        return None

    def _restore(self, step: int, abstract, shardings, data, check) -> Restored:
        stored = Stored(self.folder / str(step))
        check(stored.meta)
        target = jax.tree.map(_with_sharding, (abstract.params, abstract.opt_state), shardings[1:])
        params = stored.params(target[0])
        opt_state = from_dict(stored.opt_state(as_dict(target[1])), abstract.opt_state)
        found = stored.data(data)
        if stored.meta.get("data", _digests(found)) != _digests(found):
            raise Damaged(f"{stored.folder} is damaged: its `data` is not as it was written")
        scalar = place(np.int32(step), shardings.step)
        return Restored(TrainState(scalar, params, opt_state), found, stored.meta)

    def _set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint to what no reader takes for one; its new name."""

        def rename() -> str:
            taken = {path.name for path in self.folder.iterdir()}
            names = itertools.chain([f"damaged-{step}"], (f"damaged-{step}-{n}" for n in itertools.count(1)))
            name = next(name for name in names if name not in taken)
            try:
                buckets.rename(self.folder / str(step), self.folder / name)
            except OSError as e:
                raise UserError(
                    f"{self.folder / str(step)} is damaged and cannot be renamed to {name} "
                    f"({first_line(e)}): give access to it, or take it away"
                ) from e
            return name

        name = together.from_first("damaged", rename)
        self._manager.reload()
        return name


def _atomicity(folder: epath.Path) -> ocp.options.AtomicityOptions:
    """How half a checkpoint is told from a whole one; of the stores Orbax knows by itself only Google's."""
    modes = ocp.options.AtomicityMode
    return ocp.options.AtomicityOptions(mode=modes.COMMIT_FILE if buckets.is_remote(folder) else modes.AUTO)


def _metrics(folder: epath.Path) -> dict[str, float]:
    """What an evaluation found at a checkpoint's step; nothing where the checkpoint is damaged."""
    try:
        return read_meta(folder).get("metrics", {})
    except Damaged:
        return {}


def _digests(data: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: hashlib.sha256(np.asarray(a, np.int64).tobytes()).hexdigest()[:16] for name, a in data.items()}


def initialise(
    path,
    state: TrainState,
    shardings: TrainState,
    *,
    restore_optimizer_state: bool = False,
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
    stored = Stored(find_step(path))
    abstract = jax.eval_shape(lambda: state)
    found = stored.params(jax.tree.map(_with_sharding, abstract.params, shardings.params), may_lack)
    have = leaves_by_path(found)
    params = join(found, select(state.params, lambda path: path not in have))
    opt_state = state.opt_state
    if restore_optimizer_state:
        target = as_dict(jax.tree.map(_with_sharding, abstract.opt_state, shardings.opt_state))
        opt_state = from_dict(stored.opt_state(target), abstract.opt_state)
    return TrainState(state.step, params, opt_state), int(stored.folder.name)


def check(path, params, may_lack: Collection[str] = ()) -> None:
    """Raises UserError where `initialise` would, as far as that can be told without reading an array.

    Args:
      path: of a checkpoint of this project.
      params: the model's, as shapes.
      may_lack: as there.
    """
    Stored(find_step(path)).check_params(params, may_lack)


def load_for_inference(
    path, step: int | None = None, partitioner: Partitioner | None = None
) -> tuple[Model, Any, dict[str, Any]]:
    """The model, its parameters and the checkpoint's meta.

    Args:
      path: MODEL_DIR, its `checkpoints` folder (the newest step, or `step`), one step's folder, or a checkpoint of
        another system.
      partitioner: on whose mesh the parameters are laid; by default on this process's first device.

    Raises:
      UserError: there is no checkpoint, or its base is gone.
    """
    if is_foreign(path):
        from t5x_lite.interop import loading  # late: it imports this module

        return loading.load_for_inference(path, step, partitioner)
    stored = Stored(find_step(path, step))
    model = Model(T5Config.from_dict(stored.meta["model"]))
    target = jax.tree.map(_with_sharding, model.abstract_params(), inference_shardings(model, partitioner))
    return model, stored.params(target), stored.meta


def inference_shardings(model: Model, partitioner: Partitioner | None):
    """A sharding for each parameter: on the partitioner's mesh, or on this process's first device."""
    abstract = model.abstract_params()
    if partitioner is None:
        return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), abstract)
    return partitioner.tree(abstract, model.logical_axes())


def steps(path) -> list[int]:
    """Steps of the complete checkpoints under MODEL_DIR or its `checkpoints` folder, in order."""
    folder = epath.Path(path)
    if (folder / FOLDER).exists():
        folder = folder / FOLDER
    if not folder.is_dir():
        return []
    sign = buckets.COMMITTED if buckets.is_remote(folder) else "meta"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / sign).exists())


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
    complete = not buckets.is_remote(folder) or (folder / buckets.COMMITTED).exists()
    return folder.name.isdigit() and complete and (folder / "params").exists()


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
    """A checkpoint's description of itself. Raises Damaged where it is not as it was written."""
    return Stored(folder).meta


def read_positions(folder: epath.Path) -> np.ndarray:
    """Where the data streams stood at one checkpoint: int64 [S, 2]."""
    return np.asarray(Stored(folder).data({"positions": np.zeros((0, 2), np.int64)})["positions"])


def read_vocabulary(path) -> Any | None:
    """The vocabulary that a checkpoint carries (of `t5x_lite.vocabularies`); None where it carries none.

    Args:
      path: as of `load_for_inference`.
    """
    if is_foreign(path):
        from t5x_lite.interop import formats  # late: it imports this module

        described = formats.read(path, optimizer_state=False)[1].vocabulary
    else:
        described = read_meta(find_step(path)).get("vocabulary")
    return vocabularies.from_dict(described) if described else None


def _with_sharding(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def base_of(path, params, only: Collection[str]) -> dict[str, str]:
    """What meta["base"] says of the checkpoint below `path`, from which all but `only` of `params` came."""
    others = select(params, lambda p: p not in only)
    return {"path": str(absolute(find_step(path))), "fingerprint": checksums.fingerprint(others)}


def as_dict(tree) -> dict[str, Any]:
    """An optax state as a flat dictionary of its arrays by path: names in the file, not Python classes."""
    return {name.replace("/", "."): leaf for name, leaf in leaves_by_path(tree).items()}


def from_dict(flat: Mapping[str, Any], like):
    """What `as_dict` was given, with the structure of `like`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path).replace("/", ".")], like)
