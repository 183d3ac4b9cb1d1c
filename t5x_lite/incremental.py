"""What every decoding loop stands on: one model or several averaged, a cache repeated and reordered, forced tokens.

A cache is a dictionary whose "self" and "cross" arrays carry the rows of the batch at axis 1, [l, b, …], and every
other array at axis 0; of several models it is a tuple of such dictionaries. What comes from the encoder is there once
for each input, however many sequences go on from it.

Shapes: b batch, s source length, t target length, n sequences of a row, v vocabulary, l layers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.partitioning import by_axes


class Ensemble:
    """Several sets of parameters of one model that answer together, by the mean of their logits before the softmax
    (Raffel et al. 2020, arXiv:1910.10683, section 3.6). In each function `params` is a sequence of parameter trees."""

    def __init__(self, model):
        self.model = model

    def __hash__(self):
        return hash(("ensemble", self.model))

    def __eq__(self, other):
        return isinstance(other, Ensemble) and self.model == other.model

    @property
    def config(self):
        return self.model.config

    def arranged(self, batch):
        return self.model.arranged(batch)

    def apply(self, params, batch) -> jax.Array:
        """Mean logits float32 [b, t, v]."""
        return _mean([self.model.apply(p, batch) for p in params])

    def encode(self, params, encoder_input_tokens: jax.Array):
        return tuple(self.model.encode(p, encoder_input_tokens) for p in params)

    def init_cache(self, params, encoded, encoder_input_tokens: jax.Array, max_length: int):
        return tuple(
            self.model.init_cache(p, e, encoder_input_tokens, max_length) for p, e in zip(params, encoded, strict=True)
        )

    def first_tokens(self, encoder_input_tokens: jax.Array) -> jax.Array:
        return self.model.first_tokens(encoder_input_tokens)

    def prefill(self, params, cache, tokens: jax.Array):
        return tuple(self.model.prefill(p, c, tokens) for p, c in zip(params, cache, strict=True))

    def decode_step(self, params, cache, tokens: jax.Array, index: jax.Array):
        steps = [self.model.decode_step(p, c, tokens, index) for p, c in zip(params, cache, strict=True)]
        return _mean([logits for logits, _ in steps]), tuple(c for _, c in steps)


def _mean(logits: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, (x.astype(jnp.float32) for x in logits)) / len(logits)


def of(model, params):
    """The model, or where `params` is a list or tuple of parameter trees the ensemble of them."""
    return Ensemble(model) if isinstance(params, (list, tuple)) else model


def prepared(model, params):
    """`of`, and the parameters in the dtype that the model computes in.

    They are read once for each token, and so rounded once, not each time.
    """
    model = of(model, params)
    dtype = jnp.dtype(model.config.dtype)
    return model, jax.tree.map(lambda x: x.astype(dtype), params)


class Start(NamedTuple):
    """Where decoding begins: after the tokens that every row is given.

    Attributes:
      position: int32 scalar, the length of the shortest prefix.
      forced: int32 [b, t], the tokens that are given, 0 from where a row decodes on its own.
      ids: int32 [b, t], those of them before `position`, else 0.
      last: int32 [b], the token before `position`.
      fillers: bool [b], rows of nothing but padding.
      cache: of b * n rows, in which the n sequences of an input are neighbours.
    """

    position: jax.Array
    forced: jax.Array
    ids: jax.Array
    last: jax.Array
    fillers: jax.Array
    cache: Any


def start(
    model, params, encoder_input_tokens: jax.Array, max_length: int, n: int = 1, decoder_prefix: jax.Array | None = None
) -> Start:
    """Reads the inputs, once each, and the prefixes, all tokens at once.

    Args:
      decoder_prefix: int32 [b, p], 0-padded at the end, or None.

    Raises:
      UserError: p is over `max_length`.
    """
    b = encoder_input_tokens.shape[0]
    fillers = jnp.all(encoder_input_tokens == 0, axis=-1)
    first = model.first_tokens(encoder_input_tokens)
    encoded = model.encode(params, encoder_input_tokens)
    cache = model.init_cache(params, encoded, encoder_input_tokens, max_length)
    forced = jnp.zeros((b, max_length), jnp.int32)
    position, last = jnp.int32(0), first
    if decoder_prefix is not None and decoder_prefix.size:
        p = decoder_prefix.shape[1]
        if p > max_length:
            raise UserError(
                f"the decoder's prefix of {p} tokens is longer than Decoder.max_length = {max_length}: "
                "raise that, or shorten the prefix"
            )
        forced = jnp.where(fillers[:, None], 0, jnp.pad(decoder_prefix, ((0, 0), (0, max_length - p))))
        lengths = jnp.where(fillers, max_length, jnp.sum(forced > 0, axis=1))
        position = jnp.min(lengths).astype(jnp.int32)
        # Beyond the end of a shorter prefix this reads padding; decoding overwrites what it left there.
        read = jnp.concatenate([first[:, None], forced], axis=1)
        cache = model.prefill(params, cache, read[:, :p])
        last = jax.lax.dynamic_index_in_dim(read, position, axis=1, keepdims=False)
    ids = jnp.where(jnp.arange(max_length) < position, forced, 0)
    return Start(position, forced, ids, last, fillers, cache if n == 1 else _repeated(cache, n))


def _repeated(cache, n: int):
    if isinstance(cache, tuple):
        return tuple(_repeated(c, n) for c in cache)
    return {
        name: part
        if name in ("cross", "cross_mask")
        else jax.tree.map(lambda x, axis=1 if name == "self" else 0: jnp.repeat(x, n, axis=axis), part)
        for name, part in cache.items()
    }


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


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row of x [b, n], and their places, int32: each [b, k], the largest first, and the lower
    place first among equals. Each device finds those of its own rows."""
    rows = ("batch",)
    return by_axes(lambda x: tuple(jax.lax.top_k(x, k)), (rows,), (rows, rows))(x)
