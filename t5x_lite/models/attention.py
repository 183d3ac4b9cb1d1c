"""Multi-head attention with T5's relative position bias."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_lite.models.config import T5Config
from t5x_lite.models.layers import Dense, at_least_float32, dropout, parameter
from t5x_lite.models.masks import Mask
from t5x_lite.partitioning import constrain

# Finite, so that a row whose every key is masked (padding) gives numbers that nobody reads, not NaN.
MASKED = -1e9


def in_tiles(config: T5Config) -> bool:
    """Whether training runs the kernels of flash_attention.py, which make no arrays [b, h, q, m]."""
    if config.attention == "auto":
        half = config.dtype in ("bfloat16", "float16")
        return half and config.attention_fits_tiles and jax.default_backend() == "gpu"
    return config.attention == "tiles"


def seen(config: T5Config, mask: Mask | jax.Array, q: int, m: int) -> Mask | jax.Array:
    """The mask as `Attention.attend` takes it; made once, for all layers of a stack."""
    return mask.array(q, m) if isinstance(mask, Mask) and not in_tiles(config) else mask


class Attention(nnx.Module):
    """Dot-product attention without the 1/sqrt(k) scale, which T5 folds into the initial query kernel.

    Kernels are stored with heads and head width joined, [d, h*k] and [h*k, d]: the form that T5X's and Mesh
    TensorFlow's Adafactor factors.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.dropout_rate = config.dropout_rate
        d, joined = config.emb_dim, config.num_heads * config.head_dim
        inward, outward = ("embed", "joined_kv"), ("joined_kv", "embed")
        normal = nnx.initializers.normal
        self.query = Dense((d, joined), inward, normal((d * config.head_dim) ** -0.5), config, rngs=rngs)
        self.key = Dense((d, joined), inward, normal(d**-0.5), config, rngs=rngs)
        self.value = Dense((d, joined), inward, normal(d**-0.5), config, rngs=rngs)
        self.out = Dense((joined, d), outward, normal(joined**-0.5), config, rngs=rngs)

    def _heads(self, x: jax.Array) -> jax.Array:
        """[b, n, h*k] -> [b, h, n, k]."""
        b, n, _ = x.shape
        x = constrain(x.reshape(b, n, self.num_heads, self.head_dim), "batch", "length", "heads", "kv")
        return x.transpose(0, 2, 1, 3)

    def queries(self, x: jax.Array) -> jax.Array:
        return self._heads(self.query(x))

    def keys_and_values(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """memory [b, m, d] -> keys and values, each [b, h, m, k]."""
        return self._heads(self.key(memory)), self._heads(self.value(memory))

    def attend(self, queries, keys, values, mask, bias, dropout_keys=None) -> jax.Array:
        """queries [b, h, q, k], keys and values [b, h, m, k] -> [b, q, d].

        Args:
          mask: bool, broadcastable to [b, h, q, m], False where a query may not look; or a `Mask`, for the kernels that
            make no such array.
          bias: added before the softmax, [h, q, m], [b, h, q, m] or None; rounded to the queries' dtype, as T5X's.
          dropout_keys: [b], for dropout of the weights. T5's drops a key for all queries alike, so it is the key's
            values that are dropped here.
        """
        values = dropout(values.swapaxes(2, 3), self.dropout_rate, dropout_keys).swapaxes(2, 3)
        mixed = self._mixed(queries, keys, values, mask, bias)
        mixed = constrain(mixed, "batch", "length", "heads", "kv")
        b, q = mixed.shape[:2]
        out = self.out(mixed.reshape(b, q, self.num_heads * self.head_dim))
        return constrain(out, "batch", "length", "activation")

    def _mixed(self, queries, keys, values, mask, bias) -> jax.Array:
        """[b, q, h, k]."""
        if isinstance(mask, Mask):
            from t5x_lite.models import flash_attention  # Pallas, which only GPUs need, takes a while to import

            return flash_attention.attend(queries, keys, values, bias, mask)
        scores = jnp.einsum("bhqk,bhmk->bhqm", queries, keys, preferred_element_type=at_least_float32(queries.dtype))
        if bias is not None:
            scores = scores + bias.astype(queries.dtype).astype(scores.dtype)
        scores = jnp.where(mask, scores, jnp.asarray(MASKED, scores.dtype))
        weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        return jnp.einsum("bhqm,bhmk->bqhk", weights, values)

    def __call__(self, x: jax.Array, memory: jax.Array, mask, bias, dropout_keys) -> jax.Array:
        keys, values = self.keys_and_values(memory)
        return self.attend(self.queries(x), keys, values, mask, bias, dropout_keys)


class RelativePositionBias(nnx.Module):
    """A table [h, buckets], added to the scores of self-attention: of every layer of a stack, or of one."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.buckets = config.relpos_buckets
        self.max_distance = config.relpos_max_distance
        self.rel_embedding = parameter(
            rngs,
            nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
            (config.num_heads, config.relpos_buckets),
            ("heads", "relpos_buckets"),
            config.param_dtype,
        )

    def by_offset(self, q: int, m: int, bidirectional: bool) -> jax.Array:
        """Bias [h, q + m - 1] for key position minus query position from -(q - 1) to m - 1."""
        offsets = np.arange(-(q - 1), m)
        bucket = relative_position_bucket(offsets, bidirectional, self.buckets, self.max_distance)
        # A product with a one-hot rather than a gather: its gradient is a small product too, not a scatter.
        one_hot = jax.nn.one_hot(bucket, self.buckets, dtype=self.rel_embedding.dtype, axis=0)
        return self.rel_embedding[...] @ one_hot

    def __call__(self, q: int, m: int, bidirectional: bool) -> jax.Array:
        """Bias [h, q, m]."""
        return toeplitz(self.by_offset(q, m, bidirectional), q, m)

    def rows(self, index: jax.Array, q: int, m: int, bidirectional: bool) -> jax.Array:
        """Bias [h, q, m] of the q queries from `index` (int32 scalar) on against m cached positions."""
        by_offset = self.by_offset(m, m, bidirectional)
        return toeplitz(jax.lax.dynamic_slice_in_dim(by_offset, m - q - index, m + q - 1, axis=1), q, m)

    def between(self, queries: jax.Array, keys: jax.Array, longest: int, bidirectional: bool) -> jax.Array:
        """Bias [b, h, q, m] of queries at positions [b, q] against keys at positions [b, m], all < longest."""
        bias = self.by_offset(longest, longest, bidirectional)
        offsets = keys[:, None, :] - queries[:, :, None]
        return jnp.take(bias, offsets + longest - 1, axis=1).transpose(1, 0, 2, 3)


def toeplitz(by_offset: jax.Array, q: int, m: int) -> jax.Array:
    """out[h, i, j] = by_offset[h, j - i + q - 1], by repeating and reshaping so that no gather is needed.

    With rows of n + 1 laid end to end and cut again into rows of n, each row starts one place further left.
    """
    h, n = by_offset.shape
    padded = jnp.pad(by_offset, ((0, 0), (0, 1)))
    tiled = jnp.broadcast_to(padded[:, None, :], (h, q, n + 1)).reshape(h, q * (n + 1))
    return tiled[:, : q * n].reshape(h, q, n)[:, :, q - 1 : q - 1 + m]


def relative_position_bucket(
    offsets: np.ndarray, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> np.ndarray:
    """Bucket of each offset (key position minus query position), int32 in [0, buckets).

    Near offsets have a bucket each, farther ones share buckets on a logarithmic scale up to `max_distance`
    (Raffel et al. 2020, section 2.1). Bidirectional: half of the buckets for keys after the query. Causal: keys after
    the query count as offset 0.
    """
    offsets = np.asarray(offsets)
    first = np.zeros_like(offsets)
    if bidirectional:
        buckets //= 2
        first = np.where(offsets > 0, buckets, 0)
        distance = np.abs(offsets)
    else:
        distance = np.maximum(-offsets, 0)
    exact = buckets // 2
    # float32 as in the reference systems: where the logarithm falls on a whole number, rounding decides the bucket.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(math.log(max_distance / exact))
    far = exact + (ratio * (buckets - exact)).astype(np.int32)
    return (first + np.where(distance < exact, distance, np.minimum(far, buckets - 1))).astype(np.int32)
