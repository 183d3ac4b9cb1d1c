"""Many segments at once: a `tf.RaggedTensor` [r, (n)] whose row i is one segment of n_i tokens.

A TensorFlow op costs microseconds before it touches an element, so that a segment by itself costs more in calls than in
work. Masks and fills are written for rows; the decorators here make them take a single segment, too.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Half of the time in which a pipeline is built goes into the search for Python's `if` and `for` in its functions. Ours
# have none that depend on tensors.
as_written = tf.autograph.experimental.do_not_convert


def mask_of_rows(function: Callable) -> Callable:
    """Lets `function(lengths [r], ...) -> bool [r, (n)]` also take one length, int or scalar, for a bool [n]."""

    @functools.wraps(function)
    def either(length, *args, **kwargs):
        lengths = tf.convert_to_tensor(length, tf.int32)
        if lengths.shape.rank == 1:
            return function(lengths, *args, **kwargs)
        mask = function(lengths[tf.newaxis], *args, **kwargs).values
        return tf.ensure_shape(mask, [length if isinstance(length, int) else None])

    return _marked(either)


def fill_of_rows(function: Callable) -> Callable:
    """Lets `function(tokens [r, (n)], noise_mask [r, (n)], ...)` also take one segment, [n] and [n]."""

    @functools.wraps(function)
    def either(tokens, noise_mask, *args, **kwargs):
        if isinstance(tokens, tf.RaggedTensor):
            return function(tokens, noise_mask, *args, **kwargs)
        return function(single(tokens), single(noise_mask), *args, **kwargs).values

    return _marked(either)


def _marked(function: Any) -> Callable:
    function.takes_rows = True
    return function


def takes_rows(function: Callable | None) -> bool:
    """Whether `function` (or what a `functools.partial` is of) was made by one of the decorators here."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "takes_rows", False)


def single(values: tf.Tensor) -> tf.RaggedTensor:
    """[n] as the only row: [1, (n)]."""
    return from_lengths(values, tf.size(values)[tf.newaxis])


def from_lengths(values: tf.Tensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """Rows of `lengths` [r] cut from `values` [sum of lengths]."""
    splits = tf.concat([[0], tf.cumsum(tf.cast(lengths, tf.int64))], axis=0)
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


def lengths_of(rows: tf.RaggedTensor) -> tf.Tensor:
    """int32 [r]."""
    return tf.cast(rows.row_lengths(), tf.int32)


def starts_of(rows: tf.RaggedTensor) -> tf.Tensor:
    """Where in the values each row begins: int32 [r]."""
    return tf.cast(rows.row_starts(), tf.int32)


def of(rows: tf.RaggedTensor, per_row: tf.Tensor) -> tf.Tensor:
    """One value a row, [r], repeated for each of its tokens: [all tokens]."""
    return tf.gather(per_row, ids(rows))


def ids(rows: tf.RaggedTensor) -> tf.Tensor:
    """Each token's row: int32 [all tokens]. `value_rowids` makes a table of rows by the longest row for it."""
    begun = tf.math.bincount(tf.cast(rows.row_splits[1:-1], tf.int32), minlength=tf.size(rows.values))
    return tf.cumsum(begun)[: tf.size(rows.values)]


def positions(rows: tf.RaggedTensor) -> tf.Tensor:
    """Each token's place in its row, from 0: int32 [all tokens]."""
    return tf.range(tf.size(rows.values)) - of(rows, starts_of(rows))


def keep(rows: tf.RaggedTensor, kept: tf.Tensor) -> tf.RaggedTensor:
    """The rows without the tokens where `kept`, bool [all tokens], is False."""
    before = tf.concat([[0], tf.cumsum(tf.cast(kept, tf.int64))], axis=0)
    splits = tf.gather(before, rows.row_splits)
    return tf.RaggedTensor.from_row_splits(tf.boolean_mask(rows.values, kept), splits, validate=False)


def uniform_below(limits: tf.Tensor, seed) -> tf.Tensor:
    """Integers in [0, limits), each limit at least 1: int32 of the same shape. Even to within 2^-30."""
    draws = tf.random.stateless_uniform(tf.shape(limits), seed, 0, 2**62, tf.int64)
    return tf.cast(draws % tf.cast(limits, tf.int64), tf.int32)


def apart(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset of batches, ragged ones among them, as one of single examples with plain tensors."""
    return dataset.unbatch().map(as_written(lambda example: example), num_parallel_calls=tf.data.AUTOTUNE)


def are_in(dataset: tf.data.Dataset, key: str) -> bool:
    """Whether the feature comes as rows, many segments at once."""
    return isinstance(dataset.element_spec[key], tf.RaggedTensorSpec)
