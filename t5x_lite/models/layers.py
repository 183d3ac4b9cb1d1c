"""The parts of a T5 layer: norm, dense, embedding, feed-forward block, dropout.

Every parameter is an `nnx.Param` that carries `axes`, the logical names of its dimensions. No biases anywhere
(semantics after Raffel et al. 2020, section 2.1, and T5X's reference model for names and initial values).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.config import T5Config
from t5x_lite.partitioning import constrain

ACTIVATION_FUNCTIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # the tanh form, as T5 1.1 was trained with
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def parameter(rngs: nnx.Rngs, initializer, shape: tuple[int, ...], axes: tuple[str, ...], dtype: str) -> nnx.Param:
    """A new parameter of `shape`, drawn from the stream `params`; `axes` are the logical names of its dimensions."""
    return nnx.Param(initializer(rngs.params(), shape, jnp.dtype(dtype)), axes=axes)


def at_least_float32(dtype) -> jnp.dtype:
    """The dtype for sums and exponentials: float32, or float64 where the computation is in float64."""
    return jnp.promote_types(dtype, jnp.float32)


def product(x: jax.Array, kernel: jax.Array, out_dtype=None) -> jax.Array:
    """x [..., d] @ kernel [d, f], both of one dtype, as `out_dtype` or their own."""
    if out_dtype is None or out_dtype == x.dtype:
        return jnp.matmul(x, kernel)
    return _wide_product(x, kernel, out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide_product(x, kernel, out_dtype):
    return jnp.matmul(x, kernel, preferred_element_type=out_dtype)


def _wide_product_forward(x, kernel, out_dtype):
    return _wide_product(x, kernel, out_dtype), (x, kernel)


def _wide_product_backward(out_dtype, saved, gradient):
    """The products of the gradient are of the operands' dtype, as all others: in float32 they would take a GPU four
    times as long, with everything on both sides of them rounded all the same."""
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    return jnp.matmul(gradient, kernel.T), jnp.einsum("...d,...f->df", x, gradient)


_wide_product.defvjp(_wide_product_forward, _wide_product_backward)


class RMSNorm(nnx.Module):
    """x * rsqrt(mean(x^2) + 1e-6) * scale, in float32 at least (Zhang & Sennrich 2019)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.scale = parameter(rngs, nnx.initializers.ones, (config.emb_dim,), ("embed",), config.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(at_least_float32(x.dtype))
        normalised = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
        return normalised.astype(self.dtype) * self.scale[...].astype(self.dtype)


class Dense(nnx.Module):
    """x @ kernel, kernel [input, output]."""

    def __init__(self, shape: tuple[int, int], axes: tuple[str, str], initializer, config: T5Config, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.kernel = parameter(rngs, initializer, shape, axes, config.param_dtype)

    def __call__(self, x: jax.Array, out_dtype=None) -> jax.Array:
        return product(x.astype(self.dtype), self.kernel[...].astype(self.dtype), out_dtype)


class Embedding(nnx.Module):
    """Token embedding [v, d], N(0, 1); not scaled by sqrt(d)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        shape = (config.vocab_size, config.emb_dim)
        self.embedding = parameter(rngs, nnx.initializers.normal(1.0), shape, ("vocab", "embed"), config.param_dtype)

    def _table(self) -> jax.Array:
        # Gathered over its width once, as the dense kernels are: looked up while sharded by width, every row would
        # have to change its sharding afterwards, which the partitioner can only do by replicating the batch.
        return constrain(self.embedding[...].astype(self.dtype), "vocab", "activation")

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jnp.take(self._table(), tokens, axis=0)

    def attend(self, x: jax.Array, out_dtype) -> jax.Array:
        """Logits of the tied head: x [..., d] against every embedding -> [..., v]."""
        return product(x.astype(self.dtype), self._table().T, out_dtype)


class MLP(nnx.Module):
    """Feed-forward block; gated when two activations are named: wo(act(wi_0 x) * wi_1 x)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.activations = config.mlp_activations
        self.dropout_rate = config.dropout_rate
        initializer = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        for name in self.input_names():
            kernel = Dense((config.emb_dim, config.mlp_dim), ("embed", "mlp"), initializer, config, rngs=rngs)
            setattr(self, name, kernel)
        self.wo = Dense((config.mlp_dim, config.emb_dim), ("mlp", "embed"), initializer, config, rngs=rngs)

    def input_names(self) -> list[str]:
        return ["wi"] if len(self.activations) == 1 else [f"wi_{i}" for i in range(len(self.activations))]

    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        hidden = None
        for name, activation in zip(self.input_names(), self.activations, strict=True):
            part = ACTIVATION_FUNCTIONS[activation](getattr(self, name)(x))
            hidden = part if hidden is None else hidden * part
        hidden = constrain(hidden, "batch", "length", "mlp")
        out = self.wo(dropout(hidden, self.dropout_rate, dropout_keys))
        return constrain(out, "batch", "length", "activation")


def fold(keys: jax.Array | None, site) -> jax.Array | None:
    """Keys [b] for one site below the given ones: each row's key stays a function of that row alone."""
    return None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, site)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Dropout of x [b, ..., length, width] with one key a row; the mask is shared along the length (as T5's).

    Args:
      keys: [b] PRNG keys, or None when not training.
    """
    if keys is None or rate == 0.0:
        return x
    mask_shape = (*x.shape[1:-2], 1, x.shape[-1])
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, mask_shape))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
