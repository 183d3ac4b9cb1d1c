"""A run of two checkpoints of a tiny state, and what a start on its folder makes of them."""

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite import checkpoints
from t5x_lite.trainer import TrainState

DATA = {"positions": np.arange(4, dtype=np.int64).reshape(2, 2)}
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(step):
    rng = np.random.default_rng(step)
    params = {"a": jnp.asarray(rng.standard_normal((64, 32)), jnp.float32), "b": {"c": jnp.arange(5.0) + step}}
    return TrainState(jnp.int32(step), params, (jnp.full((7,), float(step)),))


def save_run(folder):
    """Checkpoints of steps 1 and 2; the folder."""
    with checkpoints.Checkpointer(folder) as checkpointer:
        for step in (1, 2):
            checkpointer.save(state(step), DATA, {"model": {}, "early_stopping": {"value": 0.25, "bad": step}})
    return folder


def restore(folder):
    """What a run that starts again gets, and the warnings."""
    abstract, warnings = jax.eval_shape(lambda: state(0)), []
    with checkpoints.Checkpointer(folder) as checkpointer:
        restored = checkpointer.restore(abstract, jax.tree.map(lambda _: ONE, abstract), DATA, warn=warnings.append)
    return restored, warnings


def is_step(restored, step):
    same = [
        (np.asarray(a) == np.asarray(b)).all()
        for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state(step)), strict=True)
    ]
    data = (restored.data["positions"] == DATA["positions"]).all()
    return all(same) and data and restored.meta["early_stopping"] == {"value": 0.25, "bad": step}
