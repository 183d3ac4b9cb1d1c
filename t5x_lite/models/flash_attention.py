"""Attention on GPUs without its arrays [b, h, q, m]: Pallas kernels in Triton's form, forward and backward.

Scores are made, used and forgotten a tile at a time, as in FlashAttention-2 (arXiv:2307.08691). T5 adds a relative
position bias [h, q, m] to them, which is trained. It takes part in a tile as one more matrix product, with a matrix of
ones on the diagonal: added as it is, each number would have to find the thread that holds its score, which takes longer
than all the rest. Its gradient is summed over the batch by a kernel of its own, in one order, so that a step gives the
same numbers each time.

Shapes: b batch, h heads, k head width, q queries, m keys. Kernels take [b, n, h, k], the form that the projections have
in memory. A tile is rows × columns of the scores. Elsewhere than on a GPU the kernels are interpreted, for tests.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from t5x_lite.models.masks import Mask
from t5x_lite.partitioning import by_axes

LOG2_E = math.log2(math.e)  # exponentials are taken to base 2, which the hardware has
# The score that nobody may see, about as low as where arrays are made. A power of two, whose product with log2(e) is
# exact: the weights of a query that sees nothing are alike only if the difference to its highest score is exactly 0.
MASKED = -(2.0**30)

# Rows and columns of a tile, warps and pipeline stages, for each kernel: the best of those that
# tests/benchmarks/attention.py tried on an H200.
FORWARD = (64, 64, 4, 2)
BACKWARD_KEYS = (32, 64, 4, 3)
BACKWARD_QUERIES = (64, 64, 4, 2)
BACKWARD_BIAS = (64, 64, 4, 3)
SMALLEST = 16  # side of a tile that the matrix units take

BATCHED = ("batch", None, "heads", None)
SUMS = ("batch", "heads", None)  # one number for each query
IDS = ("batch", None)
BIAS = ("heads", None, None)


def attend(queries, keys, values, bias, mask: Mask) -> jax.Array:
    """softmax(queries keys^T + bias) values: queries [b, h, q, k], keys and values [b, h, m, k] -> [b, q, h, k].

    Scores and sums are float32, bias and weights are rounded to the others' dtype, as where arrays are made.

    Args:
      bias: float32 [h, q, m] or None.
    """
    b, _, q, _ = queries.shape
    query_ids, key_ids = mask.ids(b, q, keys.shape[2])
    queries, keys, values = (x.transpose(0, 2, 1, 3) for x in (queries, keys, values))
    return _attention(queries, keys, values, bias, query_ids, key_ids, mask.causal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(queries, keys, values, bias, query_ids, key_ids, causal: bool):
    return _forward(queries, keys, values, bias, query_ids, key_ids, causal)[0]


def _forward(queries, keys, values, bias, query_ids, key_ids, causal):
    some = () if bias is None else (bias,)
    run = by_axes(
        functools.partial(_forward_tiles, causal),
        (BATCHED,) * 3 + (IDS,) * 2 + (BIAS,) * len(some),
        (BATCHED, SUMS, SUMS),
    )
    mixed, highest, inverse = run(queries, keys, values, query_ids, key_ids, *some)
    return mixed, (queries, keys, values, bias, query_ids, key_ids, mixed, highest, inverse)


def _backward(causal, saved, gradient):
    queries, keys, values, bias, query_ids, key_ids, mixed, highest, inverse = saved
    # What the softmax's own gradient takes off each row.
    shares = jnp.einsum("bqhk,bqhk->bhq", mixed, gradient, preferred_element_type=jnp.float32)
    # Keys that nobody sees have no gradient: their weights are 0, but for queries that see nothing at all.
    sees = jnp.where(highest > MASKED, inverse, 0.0)
    some = () if bias is None else (bias,)
    run = by_axes(
        functools.partial(_backward_tiles, causal),
        (BATCHED,) * 4 + (SUMS,) * 4 + (IDS,) * 2 + (BIAS,) * len(some),
        (BATCHED,) * 3 + (BIAS,) * len(some),
        summed=3,
    )
    gradients = run(queries, keys, values, gradient, highest, sees, shares, inverse, query_ids, key_ids, *some)
    return *gradients[:3], (gradients[3] if some else None), None, None


_attention.defvjp(_forward, _backward)


def _forward_tiles(causal, queries, keys, values, query_ids, key_ids, bias=None):
    """mixed [b, q, h, k]; for each query its highest score × log2(e) and the inverse of the sum of exponentials
    relative to it, float32 [b, h, q]: apart, for beside the score of a query that sees nothing the sum would vanish."""
    (b, q, h, k), m = queries.shape, keys.shape[1]
    rows, columns = _tile(FORWARD, q, m)
    bias = _whole_bias(bias, rows, columns, queries.dtype)
    queries, query_ids = _filled(rows, queries, query_ids)
    keys, values, key_ids = _filled(columns, keys, values, key_ids)
    whole_q, whole_m = queries.shape[1], keys.shape[1]
    own, whole, sums = _some(rows, k), _all(whole_m, k), pl.BlockSpec((None, None, rows), lambda i, h, b: (b, h, i))
    mixed, highest, inverse = _call(
        functools.partial(_forward_kernel, _Tiles(rows, columns, m, causal)),
        FORWARD,
        "attention_forward",
        grid=(whole_q // rows, h, b),
        in_specs=[
            own,
            whole,
            whole,
            _some_ids(rows),
            _all_ids(whole_m),
            *[pl.BlockSpec((None, rows, whole_m), lambda i, h, b: (h, i, 0)) for _ in bias],
        ],
        out_specs=[own, sums, sums],
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, values.dtype),
            *[jax.ShapeDtypeStruct((b, h, whole_q), jnp.float32)] * 2,
        ],
    )(queries, keys, values, query_ids, key_ids, *bias)
    return mixed[:, :q], highest[:, :, :q], inverse[:, :, :q]


def _backward_tiles(causal, *arrays):
    """Gradients of queries, keys, values and, where there is one, of the bias."""
    with_bias = len(arrays) == 11
    arrays = arrays if with_bias else (*arrays, None)
    d_keys, d_values = _backward_keys(causal, *arrays)
    gradients = (_backward_queries(causal, *arrays), d_keys, d_values)
    return (*gradients, _backward_bias(causal, *arrays)) if with_bias else gradients


def _backward_keys(causal, *arrays):
    tiles, arrays, bias = _fill(BACKWARD_KEYS, causal, *arrays)
    (b, q, h, k), keys, values = arrays[0].shape, arrays[1], arrays[2]
    m = keys.shape[1]
    own, whole, sums = _some(tiles.columns, k), _all(q, k), pl.BlockSpec((None, None, q), lambda j, h, b: (b, h, 0))
    d_keys, d_values = _call(
        functools.partial(_backward_keys_kernel, tiles),
        BACKWARD_KEYS,
        "attention_backward_keys",
        grid=(m // tiles.columns, h, b),
        in_specs=[
            whole,
            own,
            own,
            whole,
            *[sums] * 4,
            _all_ids(q),
            _some_ids(tiles.columns),
            *[pl.BlockSpec((None, q, tiles.columns), lambda j, h, b: (h, 0, j)) for _ in bias],
        ],
        out_specs=[own, own],
        out_shape=[jax.ShapeDtypeStruct(keys.shape, keys.dtype), jax.ShapeDtypeStruct(values.shape, values.dtype)],
    )(*arrays, *bias)
    return d_keys[:, : tiles.m], d_values[:, : tiles.m]


def _backward_queries(causal, *arrays):
    n = arrays[0].shape[1]
    tiles, arrays, bias = _fill(BACKWARD_QUERIES, causal, *arrays)
    queries, keys = arrays[:2]
    (b, q, h, k), m = queries.shape, keys.shape[1]
    own, whole = _some(tiles.rows, k), _all(m, k)
    sums = pl.BlockSpec((None, None, tiles.rows), lambda i, h, b: (b, h, i))
    d_queries = _call(
        functools.partial(_backward_queries_kernel, tiles),
        BACKWARD_QUERIES,
        "attention_backward_queries",
        grid=(q // tiles.rows, h, b),
        in_specs=[
            own,
            whole,
            whole,
            own,
            *[sums] * 3,
            _some_ids(tiles.rows),
            _all_ids(m),
            *[pl.BlockSpec((None, tiles.rows, m), lambda i, h, b: (h, i, 0)) for _ in bias],
        ],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
    )(*arrays[:7], *arrays[8:], *bias)
    return d_queries[:, :n]


def _backward_bias(causal, *arrays):
    n, given = arrays[0].shape[1], arrays[-1]
    tiles, arrays, bias = _fill(BACKWARD_BIAS, causal, *arrays)
    (b, q, h, k), m = arrays[0].shape, arrays[1].shape[1]
    by_row = pl.BlockSpec((b, tiles.rows, None, k), lambda i, j, h: (0, i, h, 0))
    by_column = pl.BlockSpec((b, tiles.columns, None, k), lambda i, j, h: (0, j, h, 0))
    sums = pl.BlockSpec((b, None, tiles.rows), lambda i, j, h: (0, h, i))
    d_scores = _call(
        functools.partial(_backward_bias_kernel, tiles, b),
        BACKWARD_BIAS,
        "attention_backward_bias",
        grid=(q // tiles.rows, m // tiles.columns, h),
        in_specs=[
            by_row,
            by_column,
            by_column,
            by_row,
            *[sums] * 3,
            pl.BlockSpec((b, tiles.rows), lambda i, j, h: (0, i)),
            pl.BlockSpec((b, tiles.columns), lambda i, j, h: (0, j)),
            pl.BlockSpec((None, tiles.rows, tiles.columns), lambda i, j, h: (h, i, j)),
        ],
        out_specs=pl.BlockSpec((None, tiles.rows, tiles.columns), lambda i, j, h: (h, i, j)),
        out_shape=jax.ShapeDtypeStruct((h, q, m), jnp.float32),
    )(*arrays[:7], *arrays[8:], *bias)
    return d_scores[:, :n, : tiles.m].astype(given.dtype)


# ---- kernels ----


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """What the kernels know of their tiles: sides, real keys, the order.

    A tile lies either way: what runs along its first axis comes first, and positions are shaped to broadcast.
    """

    rows: int
    columns: int
    m: int
    causal: bool

    def row(self, i):
        return i * self.rows + jnp.arange(self.rows)

    def column(self, j):
        return j * self.columns + jnp.arange(self.columns)

    def ones(self, dtype):
        """What the bias is multiplied by."""
        column = jnp.arange(self.columns)
        return (column[:, None] == column[None, :]).astype(dtype)

    def scores(self, first, second, bias) -> jax.Array:
        """Of one tile, float32, seen or not."""
        scores = triton.dot(first, second.T)
        for part in bias:
            scores += part
        return scores

    def only(self, x, ids, row, column, otherwise) -> jax.Array:
        """x where the query sees the key, else `otherwise`; keys that only fill the tile weigh nothing at all."""
        visible = ids[0][:, None] == ids[1][None, :]
        if self.causal:
            visible &= column <= row
        x = jnp.where(visible, x, otherwise)
        return jnp.where(column < self.m, x, -jnp.inf) if self.m % self.columns else x

    def backward(self, first, second, sums, ids, row, column, bias) -> tuple[jax.Array, jax.Array]:
        """The tile again.

        Args:
          first, second: queries and their gradient, keys and values, whichever way the tile lies.
          sums: of each query its highest score × log2(e), inverse total (0 where it sees nothing) and share, shaped to
            broadcast.

        Returns:
          Exponentials, of which the weights are made, and the gradient of the scores.
        """
        highest, sees, shares = sums
        # One fused product for each score; what is not seen is the query's own number.
        exponents = self.scores(first[0], second[0], bias) * LOG2_E - highest
        exponentials = jnp.exp2(self.only(exponents, ids, row, column, MASKED * LOG2_E - highest))
        return exponentials, exponentials * sees * (triton.dot(first[1], second[1].T) - shares)


def _forward_kernel(tiles, q_ref, k_ref, v_ref, query_ids_ref, key_ids_ref, *refs):
    *bias, mixed_ref, highest_ref, inverse_ref = refs
    queries, query_ids, ones = q_ref[...], query_ids_ref[...], tiles.ones(q_ref.dtype)
    row = tiles.row(pl.program_id(0))[:, None]

    def body(j, carry):
        mixed, highest, total = carry
        place, column = pl.ds(j * tiles.columns, tiles.columns), tiles.column(j)[None, :]
        scores = tiles.scores(queries, k_ref[place, :], [triton.dot(ref[:, place], ones) for ref in bias])
        scores = tiles.only(scores, (query_ids, key_ids_ref[place]), row, column, MASKED)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores * LOG2_E - (higher * LOG2_E)[:, None])
        shrink = jnp.exp2(highest * LOG2_E - higher * LOG2_E)
        values = v_ref[place, :]
        mixed = mixed * shrink[:, None] + triton.dot(weights.astype(values.dtype), values)
        return mixed, higher, total * shrink + jnp.sum(weights, axis=1)

    zero = jnp.zeros(tiles.rows, jnp.float32)
    start = jnp.zeros(queries.shape, jnp.float32), zero - jnp.inf, zero
    mixed, highest, total = jax.lax.fori_loop(0, pl.cdiv(k_ref.shape[0], tiles.columns), body, start)
    inverse = 1.0 / total
    mixed_ref[...] = (mixed * inverse[:, None]).astype(mixed_ref.dtype)
    highest_ref[...] = highest * LOG2_E
    inverse_ref[...] = inverse


def _backward_keys_kernel(
    tiles,
    q_ref,
    k_ref,
    v_ref,
    gradient_ref,
    highest_ref,
    sees_ref,
    shares_ref,
    inverse_ref,
    query_ids_ref,
    key_ids_ref,
    *refs,
):
    *bias, d_keys_ref, d_values_ref = refs
    keys, values, key_ids, ones = k_ref[...], v_ref[...], key_ids_ref[...], tiles.ones(k_ref.dtype)
    column = tiles.column(pl.program_id(0))[:, None]  # tiles lie the other way: so no product needs a turned one

    def body(i, carry):
        d_keys, d_values = carry
        place, row = pl.ds(i * tiles.rows, tiles.rows), tiles.row(i)[None, :]
        queries, gradient = q_ref[place, :], gradient_ref[place, :]
        exponentials, d_scores = tiles.backward(
            (keys, values),
            (queries, gradient),
            [x[place][None, :] for x in (highest_ref, sees_ref, shares_ref)],
            (key_ids, query_ids_ref[place]),
            row,
            column,
            [triton.dot(ones, ref[place, :].T) for ref in bias],
        )
        weights = exponentials * inverse_ref[place][None, :]
        d_values += triton.dot(weights.astype(gradient.dtype), gradient)
        return d_keys + triton.dot(d_scores.astype(queries.dtype), queries), d_values

    zeros = jnp.zeros(keys.shape, jnp.float32)
    d_keys, d_values = jax.lax.fori_loop(0, pl.cdiv(q_ref.shape[0], tiles.rows), body, (zeros, zeros))
    d_keys_ref[...] = d_keys.astype(d_keys_ref.dtype)
    d_values_ref[...] = d_values.astype(d_values_ref.dtype)


def _backward_queries_kernel(
    tiles, q_ref, k_ref, v_ref, gradient_ref, highest_ref, sees_ref, shares_ref, query_ids_ref, key_ids_ref, *refs
):
    *bias, d_queries_ref = refs
    queries, gradient, query_ids, ones = q_ref[...], gradient_ref[...], query_ids_ref[...], tiles.ones(q_ref.dtype)
    sums = [ref[...][:, None] for ref in (highest_ref, sees_ref, shares_ref)]
    row = tiles.row(pl.program_id(0))[:, None]

    def body(j, d_queries):
        place, column = pl.ds(j * tiles.columns, tiles.columns), tiles.column(j)[None, :]
        keys, ids = k_ref[place, :], (query_ids, key_ids_ref[place])
        _, d_scores = tiles.backward(
            (queries, gradient),
            (keys, v_ref[place, :]),
            sums,
            ids,
            row,
            column,
            [triton.dot(ref[:, place], ones) for ref in bias],
        )
        return d_queries + triton.dot(d_scores.astype(keys.dtype), keys)

    zeros = jnp.zeros(queries.shape, jnp.float32)
    d_queries = jax.lax.fori_loop(0, pl.cdiv(k_ref.shape[0], tiles.columns), body, zeros)
    d_queries_ref[...] = d_queries.astype(d_queries_ref.dtype)


def _backward_bias_kernel(
    tiles,
    b,
    q_ref,
    k_ref,
    v_ref,
    gradient_ref,
    highest_ref,
    sees_ref,
    shares_ref,
    query_ids_ref,
    key_ids_ref,
    bias_ref,
    d_scores_ref,
):
    row, column = tiles.row(pl.program_id(0))[:, None], tiles.column(pl.program_id(1))[None, :]
    bias = bias_ref[...].astype(jnp.float32)

    def body(r, total):
        sums = [ref[r][:, None] for ref in (highest_ref, sees_ref, shares_ref)]
        _, d_scores = tiles.backward(
            (q_ref[r], gradient_ref[r]),
            (k_ref[r], v_ref[r]),
            sums,
            (query_ids_ref[r], key_ids_ref[r]),
            row,
            column,
            [bias],
        )
        return total + d_scores

    d_scores_ref[...] = jax.lax.fori_loop(0, b, body, jnp.zeros(d_scores_ref.shape, jnp.float32))


# ---- how the kernels are called ----


def _call(kernel, settings, name: str, **specs):
    _, _, warps, stages = settings
    return pl.pallas_call(
        kernel,
        **specs,
        name=name,
        interpret=jax.default_backend() != "gpu",
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
    )


def _tile(settings, q: int, m: int) -> tuple[int, int]:
    """Rows and columns: what the kernel is best with, or the next power of two that holds all of a short side."""
    return tuple(min(side, max(SMALLEST, pl.next_power_of_2(n))) for side, n in zip(settings, (q, m), strict=False))


def _filled(side: int, *arrays):
    """Arrays [b, n, …] filled up with zeros to a multiple of `side`."""
    return [_fill_axis(x, 1, side) for x in arrays]


def _fill_axis(x, axis: int, side: int, value=0):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % side)
    return jnp.pad(x, widths, constant_values=value)


def _whole_bias(bias, rows: int, columns: int, dtype) -> list[jax.Array]:
    return [] if bias is None else [_fill_axis(_fill_axis(bias.astype(dtype), 1, rows), 2, columns)]


def _fill(settings, causal, queries, keys, values, gradient, highest, sees, shares, inverse, query_ids, key_ids, bias):
    """What the backward kernels need, in whole tiles."""
    q, m = queries.shape[1], keys.shape[1]
    rows, columns = _tile(settings, q, m)
    bias = _whole_bias(bias, rows, columns, queries.dtype)
    # Queries that are not there have no gradient and, for an infinite score, no weights: they add nothing to any sum.
    queries, gradient, query_ids = _filled(rows, queries, gradient, query_ids)
    keys, values, key_ids = _filled(columns, keys, values, key_ids)
    highest = _fill_axis(highest, 2, rows, jnp.inf)
    sees, shares, inverse = (_fill_axis(x, 2, rows) for x in (sees, shares, inverse))
    tiles = _Tiles(rows, columns, m, causal)
    return tiles, (queries, keys, values, gradient, highest, sees, shares, inverse, query_ids, key_ids), bias


def _some(n: int, k: int) -> pl.BlockSpec:
    """Of [b, n, h, k]: the part that belongs to the grid's first axis, of one row and head."""
    return pl.BlockSpec((None, n, None, k), lambda i, h, b: (b, i, h, 0))


def _all(n: int, k: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, n, None, k), lambda i, h, b: (b, 0, h, 0))


def _some_ids(n: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, n), lambda i, h, b: (b, i))


def _all_ids(n: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, n), lambda i, h, b: (b, 0))
