"""A run's folder: one run at a time in it, and a configuration that stays what it was."""

import contextlib
import dataclasses
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from t5x_lite import buckets, console
from t5x_lite.errors import UserError, first_line

LOCK_FILE = "lock"
# How a model computes, not what: these may change from one start of a run to the next.
_FREE_OF_MODEL = ("dropout_rate", "dtype", "remat", "scan_unroll", "attention")
_FREE_OF_DATA = ("task_modules",)


@contextlib.contextmanager
def lock(folder: epath.Path) -> Iterator[None]:
    """Holds MODEL_DIR for this process, until it ends in whatever way: the system takes the lock back.

    Object stores have no locks, and some network file systems neither: there nothing is held.

    Raises:
      UserError: another process holds it (named), or nothing can be written there.
    """
    if buckets.is_remote(folder):
        _sign(folder)
        yield
        return
    path = os.path.join(folder, LOCK_FILE)
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as e:
        raise UserError(f"MODEL_DIR = {folder} cannot be written to ({e.strerror}): mend that, or name another") from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(
                f"MODEL_DIR = {folder} is in use by {owner}: stop that run first, or give this one another MODEL_DIR"
            ) from e
        except OSError as e:
            console.show(f"note: {folder} cannot be locked ({e.strerror}): see to it that no other run uses it", None)
        file.truncate(0)
        file.write(_owner())
        file.flush()
        yield


def _sign(folder: epath.Path) -> None:
    """Leaves a name where there are no locks, and says whose was there before."""
    path = epath.Path(folder) / LOCK_FILE
    try:
        before = path.read_text().strip() if path.exists() else "nobody"
        path.write_text(_owner())
    except Exception as e:
        if not buckets.is_failure_of_access(e):
            raise
        raise UserError(
            f"MODEL_DIR = {folder} cannot be written to ({first_line(e)}): mend that, or name another"
        ) from e
    console.show(
        f"note: {folder} cannot be locked, it was last used by {before}: see to it that no other run uses it now", None
    )


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file so that whoever reads it, now or after a crash, finds the old text or the new one."""
    if buckets.is_remote(path):  # an object is whole anyway
        path.write_text(text)
        return
    beside = path.parent / f".{path.name}.{os.getpid()}"
    beside.write_text(text)
    beside.replace(path)


def new_folder(path: str, binding: str) -> epath.Path:
    """A folder that something is to be written to as a whole: one on a disk that is not there, or empty.

    Args:
      binding: to name in errors.

    Raises:
      UserError: it is in an object store, or there is something.
    """
    if buckets.is_remote(path):
        raise UserError(f"{binding} = {path}: name a local folder, and copy it there when it is whole")
    return unwritten(path)


def unwritten(path: epath.PathLike) -> epath.Path:
    """The folder, which is not there, or empty. Raises UserError where there is something."""
    folder = epath.Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{path} exists: name a new folder, nothing is written over")
    return folder


@contextlib.contextmanager
def made_beside(folder: epath.Path) -> Iterator[epath.Path]:
    """A name for a folder to make, which is given `folder`'s when all is well, and is removed else.

    `folder` must not be there, or be empty.
    """
    unfinished = folder.parent / f".{folder.name}.unfinished-{os.getpid()}"
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        if unfinished.exists():
            unfinished.rmtree()


def meaning(model, data, **others) -> dict[str, str]:
    """What must stay as it is for a run that goes on to be the same run, by binding.

    Args:
      model: a T5Config.
      data: the source's configuration, a dataclass.
      others: further bindings.
    """
    fixed = {f"T5Config.{name}": value for name, value in model.to_dict().items() if name not in _FREE_OF_MODEL}
    for field in dataclasses.fields(data):
        if field.name not in _FREE_OF_DATA:
            fixed[f"{type(data).__name__}.{field.name}"] = _plain(getattr(data, field.name))
    return {name: repr(value) for name, value in (fixed | others).items()}


def _plain(value: Any) -> Any:
    """Equal texts for equal values: mappings in the order of their keys, sequences of one kind."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def check_unchanged(
    before: Mapping[str, Any], meaning: Mapping[str, str], bindings: Mapping[str, str], allowed: bool, say
) -> None:
    """Prints what differs from the configuration that a checkpoint was saved with.

    Args:
      before: the checkpoint's meta.
      meaning: see above.
      bindings: all others, as gin has them.
      allowed: what changes the run's meaning may differ, too.

    Raises:
      UserError: it differs, and may not.
    """
    changed = _changes(before.get("meaning", {}), meaning)
    step = before["step"]
    if changed and not allowed:
        raise UserError(
            f"step {step} was saved by a run with another {', another '.join(changed)}: set it back, use "
            "another MODEL_DIR, or say --allow_config_change"
        )
    told = _changes(before.get("bindings", {}), bindings)
    for line in dict.fromkeys([*changed, *told]):
        say(f"changed since step {step}: {line}")


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line for each name that both know with different values."""
    return [
        f"{name} ({before[name]} then, {now[name]} now)" for name in before if name in now and before[name] != now[name]
    ]
