"""What is in a checkpoint of whatever system, told without its arrays; and how the parameters of two differ."""

from typing import Any

import numpy as np

from t5x_lite import checkpoints, vocabularies
from t5x_lite.interop import formats
from t5x_lite.stored import item_metadata


def read(path: str) -> dict[str, Any]:
    """Names, shapes, dtypes and sizes, and what a checkpoint says of itself; no array is read.

    Returns:
      {"path", "format", "step", "arrays": {item: {path: {"shape", "dtype", "bytes"}}}, "about": {name: value}}.
      Arrays of this project's own are as they lie there; another system's parameters have this project's names.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    kind, folder = formats.detect(path)
    if kind != formats.NATIVE:
        _, weights = formats.read(path)
        arrays = {"params": {name: _array(t.shape, t.dtype) for name, t in weights.params.items()}}
        about = {"model": weights.config.to_dict(), "vocabulary": _vocabulary(weights.vocabulary)}
        return {"path": str(folder), "format": kind, "step": weights.step, "arrays": arrays, "about": about}
    meta = checkpoints.read_meta(folder)
    arrays = {}
    for item in ("params", "opt_state", "data"):
        if (folder / item).exists():
            found = item_metadata(folder / item)
            arrays[item] = {name: _array(leaf.shape, leaf.dtype) for name, leaf in sorted(found.items())}
    about = {name: value for name, value in meta.items() if name not in ("step", "data", "vocabulary")}
    about["vocabulary"] = _vocabulary(meta.get("vocabulary"))
    return {"path": str(folder), "format": kind, "step": meta["step"], "arrays": arrays, "about": about}


def difference(path: str, against: str) -> dict[str, Any]:
    """How the parameters of two checkpoints differ, layer by layer, an array of each in memory at a time.

    Returns:
      {"path", "against", "step", "against_step", "equal": number of equal arrays, "different": {path: {"what", and for
      two of one shape "largest", the largest absolute difference, and "relative", the norm of the difference over that
      of the first}}, "model": {field: [value, value]} where the two models' configurations differ}.

    Raises:
      UserError: as `read`.
    """
    one, other = (formats.read(p)[1] for p in (path, against))
    different: dict[str, dict[str, Any]] = {}
    for name in sorted(one.params.keys() | other.params.keys()):
        first, second = one.params.get(name), other.params.get(name)
        if first is None or second is None:
            different[name] = {"what": f"only in {against if first is None else path}"}
        elif first.shape != second.shape:
            different[name] = {"what": f"shape {list(first.shape)} against {list(second.shape)}"}
        else:
            a, b = (np.asarray(tensor.read(), np.float64) for tensor in (first, second))
            kinds = "" if first.dtype == second.dtype else f", {first.dtype} against {second.dtype}"
            if not np.array_equal(a, b, equal_nan=True):
                gap, norm = np.abs(a - b), np.linalg.norm(a)
                relative = float(np.linalg.norm(gap) / norm) if norm else float("inf")
                different[name] = {"what": f"values{kinds}", "largest": float(gap.max()), "relative": relative}
            elif kinds:
                different[name] = {"what": kinds.removeprefix(", ")}
    models = [weights.config.to_dict() for weights in (one, other)]
    return {
        "path": path,
        "against": against,
        "step": one.step,
        "against_step": other.step,
        "equal": len(one.params.keys() | other.params.keys()) - len(different),
        "different": different,
        "model": {name: [m[name] for m in models] for name in models[0] if models[0][name] != models[1][name]},
    }


def _array(shape, dtype) -> dict[str, Any]:
    kind = np.dtype(dtype)
    return {"shape": list(shape), "dtype": str(kind), "bytes": int(np.prod(shape, dtype=np.int64)) * kind.itemsize}


def _vocabulary(described: dict[str, Any] | None) -> str | None:
    return repr(vocabularies.from_dict(described)) if described else None
