"""This project's own checkpoints, read and written a tensor at a time: other meshes, dtypes, stacked layers or not.

The folders are those of `t5x_lite.checkpoints`, which restores what is written here.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite import checkpoints
from t5x_lite.interop import weights as w
from t5x_lite.interop import zarr
from t5x_lite.models import T5Config
from t5x_lite.stored import Stored, absolute, item_metadata

# Pieces of the stored arrays: small enough to compress and to restore a device's share without reading all.
CHUNK_BYTES = 64 * 2**20
# Tensors that are written together.
GROUP_BYTES = 64 * 2**20


def read(path, *, step: int | None = None, rules: w.Rules = (), optimizer_state: bool = True) -> w.Weights:
    """A checkpoint of this project.

    Args:
      path: MODEL_DIR, its `checkpoints` folder, or one step's folder.
      step: which one, below a MODEL_DIR; the newest by default.
      rules: `weights.apply_rules` on the parameters' paths as they are stored.
      optimizer_state: False leaves it out.

    Raises:
      UserError: there is no such checkpoint.
    """
    checkpoint = Stored(checkpoints.find_step(path, step))
    folder, meta = checkpoint.folder, dict(checkpoint.meta)
    config = T5Config.from_dict(meta.pop("model"))
    stored: dict[str, w.Tensor] = {}
    for layer in checkpoint.with_bases():  # what was not trained lies in the checkpoint that it stands on
        stored = {**_open(layer.folder / "params"), **stored}
    meta.pop("base", None)
    params = w.split(w.apply_rules(stored, rules))
    opt_state = None
    if optimizer_state and (folder / "opt_state").exists():
        opt_state = w.split_state(_open(folder / "opt_state"))
    data = _open(folder / "data") if opt_state and (folder / "data").exists() else None
    return w.Weights(config, params, int(folder.name), meta.pop("vocabulary", None), opt_state, meta, data)


def write(folder: epath.Path, weights: w.Weights) -> None:
    """Writes MODEL_DIR `folder` with the one checkpoint, stacked or not as `weights.config.scan_layers` says."""
    at = folder / checkpoints.FOLDER / str(weights.step)
    at.mkdir(parents=True)
    scanned = weights.config.scan_layers
    params = w.stacked(weights.params) if scanned else weights.params
    _save(at / "params", w.nested(params))
    if weights.opt_state is not None:
        _save(at / "opt_state", w.stacked_state(weights.opt_state) if scanned else weights.opt_state)
    if weights.data is not None:
        _save(at / "data", weights.data)
    meta = {**weights.meta, "model": weights.config.to_dict(), "vocabulary": weights.vocabulary, "step": weights.step}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(absolute(at / "meta"), meta)


class _InTurn(ocp.type_handlers.NumpyHandler):
    """Reads tensors when their turn comes, small ones together, and waits until they are written.

    Each wait is a commit to the file system, so a thousand of the optimizer's vectors must not wait one by one.
    """

    async def serialize(self, values, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        for group in _groups([tensor.nbytes for tensor in values]):
            arrays = [np.asarray(values[i].read()) for i in group]
            for future in await super().serialize(arrays, [infos[i] for i in group], [args[i] for i in group]):
                await asyncio.to_thread(future.result)
            del arrays
        return []


def _groups(sizes: list[int]) -> list[list[int]]:
    """Indices in order, each group of at most `GROUP_BYTES` or of one."""
    groups, total = [[]], 0
    for i, size in enumerate(sizes):
        if groups[-1] and total + size > GROUP_BYTES:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += size
    return groups if sizes else []


_HANDLERS = ocp.type_handlers.create_type_handler_registry((w.Tensor, _InTurn(deepcopy_host_arrays=False)))


def _save(folder: epath.Path, tree: Mapping[str, Any]) -> None:
    options = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=_HANDLERS)) as checkpointer:
        checkpointer.save(absolute(folder), args=ocp.args.PyTreeSave(tree, save_args=options))


def _open(folder: epath.Path) -> dict[str, w.Tensor]:
    """Path -> tensor of one item, of which only the metadata is read."""
    named = zarr.in_orbax(folder)
    return {name: named(name.replace("/", ".")) for name in item_metadata(folder)}
