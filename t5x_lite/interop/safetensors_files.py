"""Folders of .safetensors files: one, or shards with an index; read and written a tensor at a time.

Reading is the safetensors package's. Its writer wants all tensors in memory at once, so writing is done here: a file is
the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and byte range of each tensor) and
the arrays (https://github.com/huggingface/safetensors#format).
"""

import functools
import json
import struct
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.interop.weights import Tensor

NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_ALIGNMENT = 8  # of the data's start


def read(folder: epath.Path) -> dict[str, Tensor] | None:
    """Name -> tensor of all files, None where there are none.

    Raises:
      UserError: a damaged or missing file, or a dtype that is not a float's.
    """
    if (folder / INDEX).exists():
        try:
            names = json.loads((folder / INDEX).read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{folder / INDEX} is damaged ({type(e).__name__}: {e}): download it again") from e
        tensors: dict[str, Tensor] = {}
        for file in sorted(set(names.values())):
            found = _read_file(folder / file)
            lost = [name for name, where in names.items() if where == file and name not in found]
            if lost:
                raise UserError(f"{folder / file} lacks {lost[0]}, which {INDEX} says it has: download both again")
            tensors |= {name: tensor for name, tensor in found.items() if names.get(name) == file}
        return tensors
    return _read_file(folder / NAME) if (folder / NAME).exists() else None


def _read_file(file: epath.Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(str(file), framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
            about = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (OSError, safetensors.SafetensorError) as e:
        raise UserError(f"{file} cannot be read ({type(e).__name__}: {e}): download it again") from e
    tensors = {}
    for name, (shape, code) in about.items():
        if code not in _DTYPES:
            raise UserError(
                f"{file}: {name} is {code}; only {', '.join(_DTYPES)} can be converted: give the weights "
                "before quantization"
            )
        tensors[name] = Tensor(shape, jnp.dtype(_DTYPES[code]), functools.partial(_get, str(file), name))
    return tensors


def _get(file: str, name: str) -> np.ndarray:
    # Opened anew for each: the file is mapped into memory, where all that was ever read would otherwise stay.
    with safetensors.safe_open(file, framework="numpy") as opened:
        return np.array(opened.get_tensor(name))


def write(folder: epath.Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    """Writes `tensors` in their order, in files of at most `max_shard_bytes` (or of a single tensor), and an index
    where that makes more than one."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        _write_file(folder / NAME, shards[0])
        return
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        _write_file(folder / file, shard)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(file: epath.Path, tensors: Mapping[str, Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _CODES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            array = np.ascontiguousarray(tensor.read())
            assert array.shape == tensor.shape and array.dtype == tensor.dtype
            out.write(array.reshape(-1).view(np.uint8).data)
