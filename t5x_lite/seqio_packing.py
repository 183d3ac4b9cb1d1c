"""seqio's feature converters with packing by whole batches: the same rows, without a loop over the examples.

seqio packs greedily, one example after the other in a `tf.while_loop` that copies what it has at every turn; on rows of
512 tokens that is most of the input pipeline's time. Here only the *lengths* are walked, all starts at once.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

# Searching functions for Python's control flow takes longer than tracing them, and every block of data traces its own.
_as_written = tf.autograph.experimental.do_not_convert


class _BatchPacking(seqio.FeatureConverter):
    """`FeatureConverter` with `pack` instead of seqio's packing; lengths are right by construction and not checked."""

    def __init__(self, **kwargs):
        super().__init__(apply_length_check=False, **kwargs)

    def _pack_or_pad(self, ds, packed_lengths):
        return pack(ds, packed_lengths) if self.pack else super()._pack_or_pad(ds, packed_lengths)

    @_as_written
    def _convert_example(self, features):
        return super()._convert_example(features)


class EncDecFeatureConverter(_BatchPacking, seqio.EncDecFeatureConverter):
    """Rows of an encoder-decoder."""


class LMFeatureConverter(_BatchPacking, seqio.LMFeatureConverter):
    """Rows of a language model without inputs."""


class PrefixLMFeatureConverter(_BatchPacking, seqio.PrefixLMFeatureConverter):
    """Rows of a language model with inputs."""


def pack(dataset: tf.data.Dataset, lengths: Mapping[str, int]) -> tf.data.Dataset:
    """Joins consecutive examples into rows, each as full as can be without cutting an example; as seqio does.

    Args:
      dataset: dicts of int32 [n]; what follows a zero is padding. Features that `lengths` does not name are dropped.
      lengths: of the rows. A longer feature is cut.

    Returns:
      for each feature of `lengths` `k`, `k_segment_ids` (from 1, 0 in padding) and `k_positions`: int32 [lengths[k]].
    """
    at_once = max(lengths.values())  # seqio's number: what is left of a batch ends a row, so the rows depend on it
    cut = _as_written(lambda example: {k: example[k][:n] for k, n in lengths.items()})
    batches = dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE).padded_batch(at_once)

    @_as_written
    def rows_of(batch):
        sizes = {k: tf.math.count_nonzero(batch[k], axis=1) for k in lengths}
        starts = _row_starts(sizes, lengths, at_once)
        row = tf.cumsum(tf.cast(starts, tf.int64)) - 1
        place = tf.range(tf.size(row, tf.int64))
        in_row = place - tf.gather(tf.boolean_mask(place, starts), row)
        packed = {}
        for k, n in lengths.items():
            row_sizes = tf.math.segment_sum(sizes[k], row)
            values = {
                k: tf.RaggedTensor.from_tensor(batch[k], lengths=sizes[k]).values,
                f"{k}_segment_ids": tf.cast(tf.repeat(in_row + 1, sizes[k]), tf.int32),
                f"{k}_positions": tf.cast(tf.ragged.range(sizes[k]).values, tf.int32),
            }
            for name, flat in values.items():
                ragged = tf.RaggedTensor.from_row_lengths(flat, row_sizes, validate=False)
                packed[name] = tf.ensure_shape(ragged.to_tensor(shape=[None, n]), [None, n])
        return packed

    return batches.map(rows_of, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def _row_starts(sizes: Mapping[str, tf.Tensor], lengths: Mapping[str, int], at_most: int) -> tf.Tensor:
    """Which examples begin a row: bool [b] for sizes int64 [b], b <= at_most.

    For every example, where the row would end that it began, is a binary search in the running sum. The rows that there
    are follow from example 0, and all are found in log2(b) steps of twice the stride.
    """
    number = tf.size(next(iter(sizes.values())))
    following = tf.fill([number], number)
    for k, size in sizes.items():
        before = tf.concat([[0], tf.cumsum(size)], axis=0)
        reach = tf.searchsorted(before, before[:-1] + lengths[k], side="right") - 1
        following = tf.minimum(following, reach)
    following = tf.concat([following, [number]], axis=0)  # past the end there is only the end
    begins = tf.one_hot(0, number + 1, dtype=tf.int32)
    for _ in range(at_most.bit_length()):
        begins = tf.maximum(begins, tf.math.unsorted_segment_max(begins, following, number + 1))
        following = tf.gather(following, following)
    return begins[:-1] > 0
