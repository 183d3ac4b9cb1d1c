"""Where gin files are: the shipped ones under one name wherever they are installed, the user's beside them.

A file's rank says whose bindings win, whatever the order in which files are read: shipped models, meshes, runs,
objectives, ways of finetuning, examples < a recorded configuration < the user's files < the command line.
"""

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Sequence

from gin import config as gin_config
from t5x_lite.errors import UserError, did_you_mean, nearest

PREFIX = "t5x_lite/gin/"  # how shipped files name each other
RECORDED_HEADER = "# Recorded by t5x-lite"

FLAG, USER, RECORDED = 8, 7, 6
_SHIPPED_RANKS = {"models": 0, "mesh": 1, "runs": 2, "objectives": 3, "finetuning": 4}  # objectives say their lengths
_OTHER_SHIPPED = 5  # examples, study: they are complete runs and may override what they include


@dataclasses.dataclass(frozen=True)
class GinFile:
    """One file that was read; `name` is to show: `t5x_lite/gin/...` for shipped files, else the path from here."""

    name: str
    path: str
    rank: int


def shipped_folder() -> pathlib.Path:
    """Return the folder with the shipped gin files: inside the installed package, or beside it in a checkout."""
    # find_spec and not import: an import would bind the attribute `t5x_lite.gin`, a namespace package whose name
    # could be taken for the gin library's.
    spec = importlib.util.find_spec("t5x_lite.gin")
    folders = [pathlib.Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    folders.append(pathlib.Path(__file__).resolve().parent.parent / "gin")
    for folder in folders:
        if (folder / "models").is_dir():
            return folder
    raise UserError(f"the gin files of t5x-lite are missing (looked in {folders[0]}): install the package again")


def shipped_names() -> list[str]:
    """Return the shipped files as a user names them, e.g. `models/t5_1_1/small.gin`, sorted."""
    folder = shipped_folder()
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.gin"))


def find_file(name: str, search_paths: Sequence[str] = (), beside: str | None = None, asked: str = "") -> GinFile:
    """Find a gin file.

    `t5x_lite/gin/...` is always the shipped file. Absolute paths, URLs and names that begin with `./` or `../` are
    taken as they are. Any other name is looked up in the current folder, beside the file that includes it, in
    `search_paths` and among the shipped files; two finds with different content are an error, never a silent choice.

    Args:
      name: as written.
      search_paths: more folders.
      beside: path of the including file, if any.
      asked: who wants it, for the error (`my.gin:3` or the flag).

    Raises:
      UserError: found nowhere, or ambiguous.
    """
    asked = asked or f"--gin_file={name}"
    shipped = shipped_folder()
    if name.startswith(PREFIX):
        candidates = [shipped / name.removeprefix(PREFIX)]
    elif os.path.isabs(name) or "://" in name or name.startswith(("./", "../")):
        candidates = [as_path(name)]
    else:
        near_by = [as_path(beside).parent] if beside else []
        folders = [as_path(""), *near_by, *map(as_path, search_paths), shipped]
        candidates = [folder / name for folder in folders]
    found = {}
    for path in candidates:
        if path.is_file():
            found.setdefault(str(path) if "://" in str(path) else os.path.realpath(path), path)
    if not found:
        near = nearest(name.removeprefix(PREFIX), shipped_names())
        if any(path.is_dir() for path in candidates):
            raise UserError(f"{asked}: '{name}' is a folder; name a file in it")
        raise UserError(
            f"{asked}: no gin file '{name}'{did_you_mean(near)}; run from its folder, or give its folder "
            "in --gin_search_paths"
        )
    (first, path), *others = found.items()
    for other, other_path in others:
        if other_path.read_bytes() != path.read_bytes():
            raise UserError(
                f"{asked}: '{name}' is ambiguous, {first} and {other} differ; write ./{name} for a file of "
                f"yours, {PREFIX}{name} for the shipped one"
            )
    return _describe(first, shipped)


def _describe(path: str, shipped: pathlib.Path) -> GinFile:
    """`path` is absolute, links resolved."""
    relative = os.path.relpath(path, os.path.realpath(shipped)) if "://" not in path else ".."
    if not relative.startswith(".."):
        relative = pathlib.PurePath(relative).as_posix()
        return GinFile(PREFIX + relative, path, _SHIPPED_RANKS.get(relative.split("/")[0], _OTHER_SHIPPED))
    with as_path(path).open("rb") as f:
        recorded = f.readline().startswith(RECORDED_HEADER.encode())
    here = os.path.realpath("") + os.sep
    return GinFile(path.removeprefix(here), path, RECORDED if recorded else USER)


def as_path(name: str):
    """A path that can be read, local or remote."""
    if "://" in name:
        from etils import epath  # takes a while to import, and most runs have no remote gin file

        return epath.Path(name)
    return pathlib.Path(name)


def _open_shipped(name: str):
    return (shipped_folder() / name.removeprefix(PREFIX)).open(encoding="utf-8")


def _is_shipped(name: str) -> bool:
    return name.startswith(PREFIX) and (shipped_folder() / name.removeprefix(PREFIX)).is_file()


# For code that calls gin.parse_config_file itself, in a notebook say: canonical names work there as well. In front,
# since gin's own reader of packages fails on namespace packages.
gin_config._FILE_READERS.insert(0, (_open_shipped, _is_shipped))
