"""Other systems' checkpoints straight into a run or an inference, a tensor at a time, without a converted copy."""

from collections.abc import Collection
from typing import Any

import jax

from t5x_lite.checkpoints import as_dict, from_dict, inference_shardings
from t5x_lite.errors import UserError
from t5x_lite.interop import formats
from t5x_lite.interop import weights as w
from t5x_lite.models import Model
from t5x_lite.partitioning import Partitioner, leaves_by_path, place
from t5x_lite.trainer import TrainState


def load_for_inference(
    path, step: int | None = None, partitioner: Partitioner | None = None
) -> tuple[Model, Any, dict[str, Any]]:
    """What `checkpoints.load_for_inference` gives of this project's own."""
    _, weights = formats.read(path, step=step)
    params = w.stacked(weights.params) if weights.config.scan_layers else weights.params
    model = Model(weights.config)
    shardings = leaves_by_path(inference_shardings(model, partitioner))
    tree = w.nested({name: place(tensor.read(), shardings[name]) for name, tensor in params.items()})
    return model, tree, {"model": weights.config.to_dict(), "vocabulary": weights.vocabulary, "step": weights.step}


def initialise(
    path, state: TrainState, shardings: TrainState, restore_optimizer_state: bool, may_lack: Collection[str] = ()
) -> tuple:
    """What `checkpoints.initialise` gives of this project's own; every device is given its own share of each tensor.

    Raises:
      UserError: parameters that are not those of the configured model, or an optimizer state that is not there or is
        that of another optimizer.
    """
    kind, _ = formats.detect(path)
    if restore_optimizer_state and kind != formats.T5X:
        raise UserError(
            f"{path} ({kind}) has no optimizer state that can be restored: set train.restore_optimizer_state = False"
        )
    _, weights = formats.read(path, optimizer_state=restore_optimizer_state)
    params = _place(f"{path} (parameters)", weights.params, state.params, shardings.params, may_lack)
    opt_state = state.opt_state
    if restore_optimizer_state:
        flat = {name.replace("/", "."): leaf for name, leaf in as_dict(state.opt_state).items()}
        where = as_dict(shardings.opt_state)
        opt_state = from_dict(_place(f"{path} (optimizer)", weights.opt_state, flat, where), state.opt_state)
    return TrainState(state.step, params, opt_state), weights.step


def _place(what: str, tensors: dict[str, w.Tensor], like, shardings, may_lack: Collection[str] = ()):
    """`tensors`, stacked where `like` is, as device arrays of its shapes, dtypes and shardings; `like`'s own arrays for
    the paths in `may_lack` that are not there."""
    leaves = leaves_by_path(like)
    if not leaves.keys() - set(may_lack) <= tensors.keys():
        tensors = (
            w.stacked_state(tensors) if any(name.startswith("inner_states.") for name in leaves) else w.stacked(tensors)
        )
    kept = set(may_lack) - tensors.keys()
    expected = {name: leaf.shape for name, leaf in leaves.items() if name not in kept}
    w.check_shapes(
        what,
        {name: tensor.shape for name, tensor in tensors.items()},
        expected,
        "Use the model file and the optimizer of that checkpoint",
    )
    placed = []
    for (name, leaf), sharding in zip(leaves.items(), jax.tree.leaves(shardings), strict=True):
        if name in kept:
            placed.append(leaf)
            continue
        placed.append(place(tensors[name].cast(leaf.dtype).read(), sharding))
    return jax.tree.unflatten(jax.tree.structure(like), placed)
