"""Meshes, parameters, batches and states for tiny models, shared by the tests of everything that runs one."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.models import Model
from t5x_lite.partitioning import DEFAULT_RULES, MESH_AXES, MeshConfig, Partitioner, leaves_by_path, path_name
from t5x_lite.trainer import Trainer, TrainState


def mesh(shape=(1, 1, 1), rules=DEFAULT_RULES) -> Partitioner:
    """The first devices, as (data, fsdp, tensor)."""
    return MeshConfig(dict(zip(MESH_AXES, shape, strict=True)), rules).build(jax.devices()[: math.prod(shape)])


def make_inputs(rows, length=10, v=40, seed=0) -> np.ndarray:
    """int32 [rows, length]: of every length from 2 tokens on, 0 where padded."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, v, (rows, length)).astype(np.int32)
    for i, n in enumerate(rng.integers(2, length + 1, rows)):
        tokens[i, n:] = 0
    return tokens


def make_batch(rows=8, s=9, t=6, v=256, seed=0) -> dict[str, np.ndarray]:
    """Rows of very unequal length, so that a mean of means would differ from the mean over tokens."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, v, (rows, t)) * (np.arange(t) < rng.integers(1, t + 1, (rows, 1)))
    batch = {
        "encoder_input_tokens": rng.integers(3, v, (rows, s)) * (np.arange(s) < rng.integers(2, s + 1, (rows, 1))),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": targets > 0,
    }
    return {name: array.astype(np.int32) for name, array in batch.items()}


def random_params(config, seed=0):
    """Parameters of about the size of initial ones, but nowhere 0 or 1 throughout; drawn by NumPy, for the initialiser
    takes seconds to compile."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        name = path_name(path)
        noise = rng.standard_normal(leaf.shape)
        if name.endswith("scale") or "ia3" in name:
            noise = 1.0 + 0.2 * noise
        elif name.endswith(("kernel", "lora_a", "lora_b")):
            # T5 has the scale of dot-product attention in the query.
            noise /= math.sqrt(leaf.shape[-2] * (config.head_dim if "query/kernel" in name else 1))
        elif not name.endswith("embedding") or "rel" in name:
            noise *= 0.2
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, Model(config).abstract_params())


def loud(config, seed=0):
    """A model and parameters such that attention, inputs and positions all change what is decoded."""

    def louder(path, leaf):
        name = path_name(path)
        if "attention" in name and "kernel" in name:
            return leaf * (4.0 if "query" in name else 2.0)
        return leaf * (3.0 if "rel_embedding" in name or "wo" in name else 1.0)

    return Model(config), jax.tree_util.tree_map_with_path(louder, random_params(config, seed))


def start(trainer: Trainer, seed=0) -> TrainState:
    """A state at step 0 on the trainer's mesh, of random parameters instead of its own initial ones."""
    params = random_params(trainer.model.config, seed)
    opt_state = jax.jit(trainer.optimizer.init)(trainer.trainable.split(params)[0])
    return jax.device_put(TrainState(jnp.int32(0), params, opt_state), trainer.shardings)


def unstacked(params):
    """The parameters of scanned layers as those of unrolled ones."""
    out = {}
    for name, value in params.items():
        if name == "layers":
            depth = jax.tree.leaves(value)[0].shape[0]
            out |= {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(depth)}
        else:
            out[name] = unstacked(value) if isinstance(value, dict) else value
    return out


def differing(a, b) -> list[str]:
    """Paths whose leaves differ in dtype or in any bit, or that only one of the two trees has."""
    a, b = leaves_by_path(a), leaves_by_path(b)
    both = a.keys() & b.keys()
    return sorted(a.keys() ^ b.keys()) + sorted(name for name in both if not _same_bits(a[name], b[name]))


def _same_bits(x, y) -> bool:
    x, y = np.asarray(x), np.asarray(y)
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()
