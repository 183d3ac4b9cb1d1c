"""Masks: which tokens are noise.

Each is `(length, noise_density, seeds) -> bool [length]`. `length` may also be int32 [r], one for each of r segments;
then the mask is a ragged bool [r, (length)], and `noise_density` may be float32 [r]. `seeds` are stateless seeds,
int32 [k, 2]: the same seeds give the same mask.
"""

import tensorflow as tf

from t5x_lite.tasks.objectives import rows
from t5x_lite.tasks.objectives.names import configurable


@configurable
@rows.mask_of_rows
def iid_noise_mask(length, noise_density: float, seeds):
    """Every token by itself with probability `noise_density`."""
    empty = _empty(length)
    draws = tf.random.stateless_uniform(tf.shape(empty.values), seed=seeds[0])
    density = tf.broadcast_to(tf.cast(noise_density, tf.float32), tf.shape(length))
    return empty.with_values(draws < rows.of(empty, density))


@configurable
@rows.mask_of_rows
def regular_noise_mask(length, noise_density: float, seeds, min_span_length: int = 1, max_span_length: int = 5):
    """Spans of one length at one distance: the length is drawn for each segment, uniform between the two bounds.

    The period is the one that gives `noise_density`, rounded; where in it the segment begins is drawn, too.
    """
    empty = _empty(length)
    span = rows.uniform_below(tf.fill(tf.shape(length), max_span_length + 1 - min_span_length), seeds[0])
    span += min_span_length
    period = tf.cast(tf.round(tf.cast(span, tf.float32) / noise_density), tf.int32)
    offset = rows.uniform_below(period, seeds[1])
    place = (rows.positions(empty) + rows.of(empty, offset)) % rows.of(empty, period)
    return empty.with_values(place < rows.of(empty, span))


@configurable
@rows.mask_of_rows
def random_prefix_noise_mask(length, noise_density: float, seeds):
    """The first tokens, at least one; of more than one token the last never. For one half, every such split alike.

    With density d the prefix has between (1 - 2d) of the tokens and all but one: d is the share of the *rest*.

    Raises:
      ValueError: `noise_density` above one half.
    """
    if isinstance(noise_density, float | int) and noise_density > 0.5:
        raise ValueError(f"random_prefix_noise_mask: noise_density is {noise_density}, and can be at most 0.5")
    empty = _empty(length)
    longest = length - 1
    shortest = tf.cast(tf.round((1 - 2 * noise_density) * tf.cast(longest, tf.float32)), tf.int32)
    shortest = tf.minimum(tf.maximum(shortest, 1), longest)
    prefix = shortest + rows.uniform_below(longest - shortest + 1, seeds[0])
    return empty.with_values(rows.positions(empty) < rows.of(empty, prefix))


@configurable
@rows.mask_of_rows
def random_spans_noise_mask(
    length, noise_density: float, seeds, mean_noise_span_length: float = 3.0, random_roll: bool = False
):
    """A fixed number of noise tokens in a fixed number of spans, their lengths uniform over all ways to do it.

    The mask starts with text and ends with noise, so the last token is always noise: where one span suffices for the
    whole sequence, only its tail would ever be corrupted, and `random_roll` rotates the mask by a random offset.

    Args:
      seeds: [2, 2] (one for each kind of span; the roll uses a seed derived from them).
    """
    empty = _empty(length)
    noise = tf.cast(tf.round(tf.cast(length, tf.float32) * noise_density), tf.int32)
    # Both kinds have a token, where there are two tokens.
    noise = tf.where(length < 2, 0, tf.maximum(tf.minimum(noise, length - 1), 1))
    spans = tf.cast(tf.round(tf.cast(noise, tf.float32) / mean_noise_span_length), tf.int32)
    # Every span holds a token, of both kinds: beyond one half of noise, text is what runs out.
    spans = tf.maximum(tf.minimum(spans, tf.minimum(noise, length - noise)), 1)
    noise_lengths = random_segmentation(noise, spans, seeds[0])
    text_lengths = random_segmentation(length - noise, spans, seeds[1])
    ends = tf.cumsum(tf.reshape(tf.stack([text_lengths, noise_lengths], axis=2), [tf.size(length), -1]), axis=1)
    ends += rows.starts_of(empty)[:, tf.newaxis]
    # A token is noise where an odd number of spans has ended before it. Rows have an even number of spans, the empty
    # ones that fill up `spans` included.
    ended = tf.math.bincount(tf.reshape(ends, [-1]), minlength=tf.size(empty.values) + 1)
    mask = tf.cumsum(ended)[:-1] % 2 == 1
    if random_roll:
        offset = rows.uniform_below(tf.maximum(length, 1), seeds[0] + seeds[1])
        starts, sizes = rows.of(empty, rows.starts_of(empty)), rows.of(empty, length)
        mask = tf.gather(mask, starts + (rows.positions(empty) - rows.of(empty, offset)) % sizes)
    return empty.with_values(mask)


def random_segmentation(items: tf.Tensor, segments: tf.Tensor, seed) -> tf.Tensor:
    """`items` [r] split into `segments` [r] positive parts, every composition equally likely.

    The ends of the first parts are a uniformly drawn subset of the `items - 1` gaps between items.

    Returns:
      int32 [r, most segments]; after a row's own segments there are zeros.
    """
    gaps, cuts = items - 1, tf.maximum(tf.reduce_max(segments), 1) - 1
    width = tf.maximum(tf.reduce_max(gaps), cuts)
    keys = tf.random.stateless_uniform([tf.size(items), width], seed, 0, 2**31 - 1, tf.int32)
    keys = tf.where(tf.range(width) < gaps[:, tf.newaxis], keys, -1)
    chosen = tf.math.top_k(keys, cuts).indices + 1
    # Of the best keys a row takes as many as it has cuts; the others stand at its end, where they cut nothing off.
    chosen = tf.where(tf.range(cuts) < segments[:, tf.newaxis] - 1, chosen, items[:, tf.newaxis])
    ends = tf.concat([tf.sort(chosen, axis=1), items[:, tf.newaxis]], axis=1)
    return ends - tf.pad(ends[:, :-1], [[0, 0], [1, 0]])


def _empty(lengths: tf.Tensor) -> tf.RaggedTensor:
    """Rows of `lengths` with values yet to be made."""
    return rows.from_lengths(tf.zeros([tf.reduce_sum(lengths)], tf.bool), lengths)
