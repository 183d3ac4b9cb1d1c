"""What every decoding loop stands on: one model or several averaged, a cache repeated and reordered, forced tokens.

A cache is a dictionary whose "self" and "cross" arrays carry the rows of the batch at axis 1, [l, b, …], and every
other array at axis 0; of several models it is a tuple of such dictionaries.

Shapes: b batch, s source length, t target length, n sequences of a row, v vocabulary, l layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.partitioning import by_rows


class Ensemble:
    """Several sets of parameters of one model that answer together, by the mean of their logits before the softmax
    (Raffel et al. 2020, arXiv:1910.10683, section 3.6). In each function `params` is a sequence of parameter trees."""

    def __init__(self, model):
        self.model = model

    def __hash__(self):
        return hash(("ensemble", self.model))

    def __eq__(self, other):
        return isinstance(other, Ensemble) and self.model == other.model

    def apply(self, params, batch) -> jax.Array:
        """Mean logits float32 [b, t, v]."""
        return _mean([self.model.apply(p, batch) for p in params])

    def encode(self, params, encoder_input_tokens: jax.Array):
        return tuple(self.model.encode(p, encoder_input_tokens) for p in params)

    def init_cache(self, params, encoded, encoder_input_tokens: jax.Array, max_length: int):
        return tuple(self.model.init_cache(p, e, encoder_input_tokens, max_length)
                     for p, e in zip(params, encoded, strict=True))

    def first_tokens(self, encoder_input_tokens: jax.Array) -> jax.Array:
        return self.model.first_tokens(encoder_input_tokens)

    def decode_step(self, params, cache, tokens: jax.Array, index: jax.Array):
        steps = [self.model.decode_step(p, c, tokens, index) for p, c in zip(params, cache, strict=True)]
        return _mean([logits for logits, _ in steps]), tuple(c for _, c in steps)


def _mean(logits: list[jax.Array]) -> jax.Array:
    return sum(x.astype(jnp.float32) for x in logits) / len(logits)


def of(model, params):
    """The model, or where `params` is a list or tuple of parameter trees the ensemble of them."""
    return Ensemble(model) if isinstance(params, (list, tuple)) else model


def start(model, params, encoder_input_tokens: jax.Array, max_length: int, n: int):
    """The cache of b * n rows, in which the n sequences of an input are neighbours.

    The encoder and the cross-attention's keys and values are computed once for each input.
    """
    encoded = model.encode(params, encoder_input_tokens)
    cache = model.init_cache(params, encoded, encoder_input_tokens, max_length)
    return cache if n == 1 else _map_rows(cache, lambda x, axis: jnp.repeat(x, n, axis=axis))


def reorder(cache, sources: jax.Array):
    """Sequence j of each row goes on with the history of its sequence `sources[:, j]`.

    Only the self-attention moves: what was computed from the input is the same for all sequences of a row.

    Args:
      sources: int32 [b, n], in [0, n).
    """
    b, n = sources.shape

    def move(x):  # [l, b * n, …]
        x = x.reshape(x.shape[0], b, n, *x.shape[2:])
        x = jax.vmap(lambda row, source: row[:, source], in_axes=(1, 0), out_axes=1)(x, sources)
        return x.reshape(x.shape[0], b * n, *x.shape[3:])

    if isinstance(cache, tuple):
        return tuple(reorder(c, sources) for c in cache)
    return {**cache, "self": jax.tree.map(move, cache["self"])}


def _map_rows(cache, function: Callable[[jax.Array, int], jax.Array]) -> Any:
    """function(array, axis of the batch) of each array."""
    if isinstance(cache, tuple):
        return tuple(_map_rows(c, function) for c in cache)
    return {name: jax.tree.map(lambda x, axis=1 if name in ("self", "cross") else 0: function(x, axis), part)
            for name, part in cache.items()}


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row of x [b, n], and their places, int32: each [b, k], the largest first, and the lower
    place first among equals. Each device finds those of its own rows."""
    return by_rows(lambda rows: tuple(jax.lax.top_k(rows, k)), x)


def forced(decoder_prefix: jax.Array | None, b: int, max_length: int) -> jax.Array:
    """The tokens that are given, int32 [b, max_length], 0 from where a row decodes on its own.

    Args:
      decoder_prefix: int32 [b, p], 0-padded at the end, or None.

    Raises:
      UserError: p is over `max_length`.
    """
    if decoder_prefix is None:
        return jnp.zeros((b, max_length), jnp.int32)
    p = decoder_prefix.shape[1]
    if p > max_length:
        raise UserError(f"the decoder's prefix of {p} tokens is longer than Decoder.max_length = {max_length}: "
                        "raise that, or shorten the prefix")
    return jnp.pad(decoder_prefix.astype(jnp.int32), ((0, 0), (0, max_length - p)))
