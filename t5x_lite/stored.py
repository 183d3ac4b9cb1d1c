"""One complete checkpoint as it lies in its folder: its description, the shapes of its arrays, and the arrays.

Everything that is read is verified by the checksums in the description; see checkpoints.py for what lies where.
"""

import contextlib
import functools
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite import buckets, checksums, together
from t5x_lite.errors import UserError, first_line
from t5x_lite.finetuning import join, select
from t5x_lite.partitioning import leaves_by_path


class Damaged(UserError):
    """A checkpoint that is not as it was written."""


class Unreadable(UserError):
    """A checkpoint that cannot be read now; of what it holds nothing is known."""


class Stored:
    """The checkpoint of one step. Its description is read once, when it is first asked for.

    Attributes:
      folder: MODEL_DIR/checkpoints/<step>.
    """

    def __init__(self, folder):
        self.folder = epath.Path(folder)
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    @property
    def meta(self) -> dict[str, Any]:
        """Its description of itself. Raises Damaged where it is not as it was written."""
        return self._description[0]

    @functools.cached_property
    def _description(self) -> tuple[dict[str, Any], dict[str, dict[str, list]]]:
        """(meta, item -> path -> checksum); no checksums for what was converted."""
        with _reading(self.folder / "meta"):
            sealed = ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=_alone()).restore(
                absolute(self.folder / "meta")
            )
        with _agreeing():
            try:
                meta, sums = checksums.opened(sealed)
            except ValueError as e:
                raise Damaged(f"{self.folder} is damaged: {e}") from e
        return meta, sums or {}

    def shapes(self, item: str) -> dict[str, tuple[int, ...]]:
        """Shapes of an item's arrays by path, read without the arrays. Raises Damaged."""
        if item not in self._shapes:
            found = {path: tuple(leaf.shape) for path, leaf in item_metadata(self.folder / item).items()}
            stored = self._description[1].get(item)
            if stored is not None and checksums.shapes(stored) != found:
                raise Damaged(f"{self.folder} is damaged: the arrays of its `{item}` are not those that were written")
            self._shapes[item] = found
        return self._shapes[item]

    def arrays(self, item: str, target, partial: bool = False):
        """An item's arrays, with the structure, dtypes and shardings of `target`.

        Args:
          partial: `target` is a part of what was saved.

        Raises:
          Damaged: an array is not there, garbled, or not as it was written.
          Unreadable: it cannot be read now.
        """
        with _reading(self.folder / item):
            if partial:
                arguments = ocp.args.PyTreeRestore(
                    item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
                )
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=_alone()) as checkpointer:
                    found = checkpointer.restore(absolute(self.folder / item), args=arguments)
            else:
                with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
                    found = checkpointer.restore(absolute(self.folder / item), target)
        wrong = checksums.differing(found, self._description[1].get(item, {}))
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise Damaged(f"{self.folder} is damaged: {item} {wrong[0]}{more} differ from what was written")
        return found

    def data(self, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of `data` that `like` names, of its dtypes and the stored shapes. Raises Damaged."""
        shapes = self.shapes("data")
        return self.arrays("data", {name: np.zeros(shapes.get(name, a.shape), a.dtype) for name, a in like.items()})

    def with_bases(self) -> Iterator["Stored"]:
        """This checkpoint, its base, the base's base, …

        Raises:
          UserError: a base is gone.
        """
        yield self
        base = self.meta.get("base")
        if base is None:
            return
        below = Stored(base["path"])
        if not (below.folder / "params").exists():
            raise UserError(
                f"{self.folder} holds only the trained parameters, and its base checkpoint {below.folder} "
                "is gone: put it back there (a run that is to stand alone needs "
                "train.save_only_trained = False)"
            )
        yield from below.with_bases()

    def params(self, target, may_lack: Collection[str] = ()):
        """`target`'s arrays, from here and, where it holds only what was trained, from its base and the base's own.

        Args:
          target: tree of `jax.ShapeDtypeStruct` with shardings.
          may_lack: paths that are left out where no checkpoint has them.

        Raises:
          UserError: parameters differ (each difference is named), or a base is gone or no longer the same.
        """
        have = self.check_params(target, may_lack)
        params: Any = {}
        for layer in dict.fromkeys(have.values()):
            part = select(target, {path for path, owner in have.items() if owner is layer}.__contains__)
            if part:
                whole = len(leaves_by_path(part)) == len(layer.shapes("params"))
                params = join(params, layer.arrays("params", part, partial=not whole))
        base, own = self.meta.get("base"), self.shapes("params")
        if base and checksums.fingerprint(select(params, lambda path: path not in own)) != base["fingerprint"]:
            raise UserError(
                f"{self.folder} was trained on top of {base['path']}, which holds other parameters now: "
                "put the old checkpoint back there"
            )
        return params

    def check_params(self, target, may_lack: Collection[str] = ()) -> dict[str, "Stored"]:
        """Path -> the checkpoint that holds it, this one or a base; no array is read. Raises as `params` does."""
        holders: dict[str, Stored] = {}
        for layer in self.with_bases():
            for name in layer.shapes("params"):
                holders.setdefault(name, layer)
        have = {name: layer.shapes("params")[name] for name, layer in holders.items()}
        want = {name: leaf.shape for name, leaf in leaves_by_path(target).items()}
        wrong = [f"{n} missing" for n in sorted(want.keys() - have.keys() - set(may_lack))]
        wrong += [f"{n} not in the model" for n in sorted(have.keys() - want.keys())]
        wrong += [f"{n} is {have[n]}, not {want[n]}" for n in sorted(want.keys() & have.keys()) if have[n] != want[n]]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"{self.folder} does not fit the configured model: {'; '.join(wrong[:3])}{more}; use its model file"
            )
        return holders

    def opt_state(self, target: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state by path.

        Args:
          target: path -> `jax.ShapeDtypeStruct` with a sharding.

        Raises:
          UserError: it is another's: a different optimizer, or other parameters trained.
        """
        have, want = self.shapes("opt_state"), {name: leaf.shape for name, leaf in target.items()}
        differ = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        if differ:
            raise UserError(
                f"{self.folder} has another optimizer's state ({len(differ)} arrays differ, such as "
                f"{differ[0]}): use its optimizer and Trainable.patterns, or another MODEL_DIR"
            )
        return self.arrays("opt_state", target)


def item_metadata(folder: epath.Path) -> dict[str, Any]:
    """Path -> metadata (shape, dtype) of each array of one item of a checkpoint.

    Raises:
      Damaged: it is not there, or garbled.
      Unreadable: it cannot be read now.
    """
    with _reading(folder):
        # Asked itself, for a Checkpointer passes over the handler's errors.
        metadata = ocp.StandardCheckpointHandler(multiprocessing_options=_alone()).metadata(absolute(folder))
        found = leaves_by_path(getattr(metadata, "tree", metadata), lambda x: hasattr(x, "shape"))
        if not all(hasattr(leaf, "shape") for leaf in found.values()):
            raise ValueError("it describes what is no array")
    return found


def absolute(path: epath.Path) -> epath.Path:
    """What Orbax wants; resolving would spoil a path with a scheme."""
    if buckets.is_remote(path):
        buckets.prepare()
        return path
    return path.resolve()


# What reading raises where a file is missing, cut off or garbled.
_OF_CONTENT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    EOFError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
)
# What it raises where the machine, the network or the rights to a file are at fault: of tensorstore's errors Python
# makes plain ValueErrors, which begin with the name of a status.
_OF_SURROUNDINGS = (
    "PERMISSION_DENIED:",
    "UNAUTHENTICATED:",
    "RESOURCE_EXHAUSTED:",
    "UNAVAILABLE:",
    "DEADLINE_EXCEEDED:",
    "CANCELLED:",
    "ABORTED:",
    "INTERNAL:",
    "UNKNOWN:",
)


def is_damage(problem: BaseException) -> bool:
    """Whether what was raised while reading speaks of what was read, rather than of what was in the way.

    In doubt it does not: a good checkpoint must never be taken for a damaged one.
    """
    causes = [problem]
    while (cause := causes[-1].__cause__) is not None:  # Orbax wraps tensorstore's errors
        causes.append(cause)
    in_the_way = any(
        (isinstance(e, (OSError, MemoryError, jax.errors.JaxRuntimeError)) and not isinstance(e, _OF_CONTENT))
        or str(e).startswith(_OF_SURROUNDINGS)
        for e in causes
    )
    return isinstance(causes[-1], _OF_CONTENT) and not in_the_way


def _alone() -> ocp.options.MultiprocessingOptions:
    """Each process reads for itself: one that cannot must not leave the others waiting in Orbax."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


@contextlib.contextmanager
def _agreeing():
    """What one process of several cannot read, no one can; else, what one finds damaged is damaged for all."""
    problem = None
    try:
        yield
    except UserError as e:
        problem = e
    together.agree("readable", None if isinstance(problem, Damaged) else problem, Unreadable)
    together.agree("undamaged", problem, Damaged)


@contextlib.contextmanager
def _reading(what: epath.Path):
    """Raises Damaged or Unreadable instead of what Orbax and tensorstore raise, but for a lack of memory."""
    with _agreeing():
        try:
            yield
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as e:  # Orbax wraps some in plain ones
            why = first_line(e.__cause__ or e)
            if is_damage(e):
                raise Damaged(f"{what.parent} is damaged: its `{what.name}` cannot be read ({why})") from e
            raise Unreadable(
                f"{what} cannot be read ({why}): nothing says that it is damaged; give access to it, or "
                "wait until it is there again, and start again"
            ) from e
