"""Documents: cut into pieces, joined, cut into segments. All map a `tf.data.Dataset` of dicts to another."""

import math
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

import gin
from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import rows
from t5x_lite.tasks.objectives.names import configurable


@configurable
def select_random_chunk(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    max_length: int | None = None,
    feature_key: str = "targets",
    additional_feature_keys: Sequence[str] | None = None,
    passthrough_feature_keys: Sequence[str] | None = None,
    sequence_length: Mapping[str, int] | None = None,
    uniform_random_start: bool = False,
    min_length: int | None = None,
    **unused_kwargs,
) -> tf.data.Dataset:
    """One random piece of every non-empty document, so that no long document outweighs the others.

    The document is seen as consecutive blocks of `max_length` tokens (the last one shorter) and one is drawn uniformly.

    Args:
      max_length: tokens in a block; None takes the feature's sequence length, less one where EOS will be added.
      feature_key: the feature to cut, [n]; all others are dropped unless named below.
      additional_feature_keys: features of the same length, cut at the same place.
      passthrough_feature_keys: features kept as they are.
      uniform_random_start: draw the start uniformly from [-max_length + 1, n) instead and clip it to the document.
      min_length: draw the length of the piece uniformly from [min_length, max_length) first.

    Raises:
      ValueError: a feature is both cut and passed through, or there is no length to cut to.
    """
    together, untouched = _feature_groups(feature_key, additional_feature_keys, passthrough_feature_keys)
    if max_length is None:
        if sequence_length is None or feature_key not in sequence_length:
            raise ValueError(f"select_random_chunk needs max_length or a sequence length for {feature_key!r}")
        max_length = length_without_eos(feature_key, sequence_length, output_features)

    @seqio.map_over_dataset(num_seeds=2)
    def choose(example, seeds):
        size = tf.size(example[feature_key])
        length = tf.constant(max_length, tf.int32)
        if min_length is not None:
            length = tf.random.stateless_uniform([], seeds[0], min_length, max_length, tf.int32)
        if uniform_random_start:
            first = tf.random.stateless_uniform([], seeds[1], 1 - length, size, tf.int32)
            start, end = tf.maximum(first, 0), tf.minimum(first + length, size)
        else:
            blocks = _ceil_div(size, length)
            start = length * tf.random.stateless_uniform([], seeds[1], 0, blocks, tf.int32)
            end = tf.minimum(start + length, size)
        piece = {k: example[k][start:end] for k in together}
        return piece | {k: example[k] for k in untouched}

    return choose(dataset.filter(lambda example: tf.size(example[feature_key]) > 0))


@configurable
def reduce_concat_tokens(
    dataset: tf.data.Dataset, feature_key: str = "targets", batch_size: int = 128, **unused_kwargs
) -> tf.data.Dataset:
    """Joins every `batch_size` consecutive documents into one (the last group may be smaller).

    Nothing is put between documents: no separator, no EOS. Zeros (padding) are removed, all other features are lost.
    """
    groups = only(dataset, feature_key).padded_batch(batch_size)

    def join(group):
        flat = tf.reshape(group[feature_key], [-1])
        return {feature_key: tf.boolean_mask(flat, flat != 0)}

    return groups.map(join, num_parallel_calls=tf.data.AUTOTUNE)


@configurable
def split_tokens(
    dataset: tf.data.Dataset,
    min_tokens_per_segment: int | None = None,
    max_tokens_per_segment: int = gin.REQUIRED,
    feature_key: str = "targets",
    additional_feature_keys: Sequence[str] | None = None,
    passthrough_feature_keys: Sequence[str] | None = None,
    **unused_kwargs,
) -> tf.data.Dataset:
    """Cuts every non-empty document into ceil(n / length) segments of `max_tokens_per_segment`, the last one shorter.

    With `min_tokens_per_segment` each document draws its own length, log-uniform between the two. Features named in
    `additional_feature_keys` are cut alike, those in `passthrough_feature_keys` are repeated with every segment.

    Raises:
      ValueError: a feature is both cut and passed through.
    """
    together, untouched = _feature_groups(feature_key, additional_feature_keys, passthrough_feature_keys)

    @seqio.map_over_dataset(num_seeds=1)
    def cut(example, seed):
        length = tf.constant(max_tokens_per_segment, tf.int32)
        if min_tokens_per_segment is not None:
            low, high = math.log(min_tokens_per_segment), math.log(max_tokens_per_segment)
            length = tf.cast(tf.round(tf.exp(tf.random.stateless_uniform([], seed, low, high))), tf.int32)
        lengths = _segment_lengths(tf.size(example[feature_key])[tf.newaxis], length)
        cut_apart = {k: rows.from_lengths(example[k], lengths) for k in together}
        return cut_apart | {k: tf.repeat(example[k][tf.newaxis], tf.size(lengths), axis=0) for k in untouched}

    return rows.apart(cut(dataset))


@configurable
def split_tokens_to_inputs_length(dataset, sequence_length, output_features, **kwargs) -> tf.data.Dataset:
    """`split_tokens` to the length of `inputs`, less one where EOS will be added."""
    length = length_without_eos("inputs", sequence_length, output_features)
    return split_tokens(dataset, max_tokens_per_segment=length, **kwargs)


@configurable
def split_tokens_to_targets_length(dataset, sequence_length, output_features, **kwargs) -> tf.data.Dataset:
    """`split_tokens` to the length of `targets`, less one where EOS will be added."""
    length = length_without_eos("targets", sequence_length, output_features)
    return split_tokens(dataset, max_tokens_per_segment=length, **kwargs)


@configurable
def split_tokens_to_random_length(dataset, sequence_length, output_features, **kwargs) -> tf.data.Dataset:
    """`split_tokens` to lengths from 8 to that of `inputs` (less EOS), one for each document, log-uniform."""
    length = length_without_eos("inputs", sequence_length, output_features)
    return split_tokens(dataset, min_tokens_per_segment=8, max_tokens_per_segment=length, **kwargs)


@configurable
def concatenate_and_split_to_fixed_length(
    dataset: tf.data.Dataset, sequence_length, output_features, feature_key: str = "targets", **unused_kwargs
) -> tf.data.Dataset:
    """All documents as one, cut into segments of the feature's length (less EOS); the last one may be shorter."""
    length = length_without_eos(feature_key, sequence_length, output_features)
    return only(dataset, feature_key).unbatch().batch(length)


@configurable
def filter_by_string_length(
    dataset: tf.data.Dataset,
    feature_key: str = "targets",
    min_length: int = 1,
    max_length: int = 1000000,
    **unused_kwargs,
) -> tf.data.Dataset:
    """Only examples whose text has from `min_length` to `max_length` bytes."""

    def fits(example):
        length = tf.strings.length(example[feature_key])
        return tf.logical_and(length >= min_length, length <= max_length)

    return dataset.filter(fits)


def trim_tokens_at_front(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    keys_to_trim: Sequence[str] | None = None,
    **unused_kwargs,
) -> tf.data.Dataset:
    """Keeps the *last* tokens of each feature, its length less one for EOS; by default of all in `sequence_length`."""

    def trim(example):
        keys = [key for key in keys_to_trim or sequence_length if key in example]
        return example | {
            key: example[key][tf.maximum(tf.size(example[key]) - sequence_length[key] + 1, 0) :] for key in keys
        }

    return dataset.map(trim, num_parallel_calls=tf.data.AUTOTUNE)


# All of it in one step ---------------------------------------------------------------------------------------------

LONGEST_PIECE = 65536
DOCUMENTS_AT_ONCE = 128


def segments(dataset: tf.data.Dataset, length: int, joined: bool, end: int | None = None) -> tf.data.Dataset:
    """`pieces`, joined by 128 if `joined`, and cut into segments of `length`.

    As `select_random_chunk`, `reduce_concat_tokens` and `split_tokens` one after the other, and many times faster.

    Args:
      end: the id of a token to put after each piece, if any.

    Returns:
      `targets` alone: int32 ragged rows [segments, (up to `length`)], those of 128 documents.
    """

    @rows.as_written
    def cut(batch):
        chunks = batch["targets"]
        if end is not None:
            chunks = tf.concat([chunks, tf.fill([chunks.nrows(), 1], end)], axis=1)
        sizes = tf.size(chunks.values)[tf.newaxis] if joined else rows.lengths_of(chunks)
        return {"targets": rows.from_lengths(chunks.values, _segment_lengths(sizes, length))}

    return pieces(dataset).map(cut, num_parallel_calls=tf.data.AUTOTUNE)


def pieces(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """One random piece of at most 65,536 tokens from every document that is not empty; zeros in it are removed.

    Returns:
      `targets` alone: int32 ragged rows [pieces, (n)], those of 128 documents.
    """

    @seqio.map_over_dataset(num_seeds=1)
    @rows.as_written
    def choose(batch, seed):
        whole = batch["targets"]
        blocks = tf.maximum(_ceil_div(rows.lengths_of(whole), LONGEST_PIECE), 1)
        chosen = rows.of(whole, rows.uniform_below(blocks, seed))
        kept = tf.logical_and(rows.positions(whole) // LONGEST_PIECE == chosen, whole.values != 0)
        chunks = rows.keep(whole, kept)
        return {"targets": tf.ragged.boolean_mask(chunks, chunks.row_lengths() > 0)}

    return choose(in_batches(dataset, "targets", DOCUMENTS_AT_ONCE))


def in_batches(dataset: tf.data.Dataset, feature_key: str, size: int) -> tf.data.Dataset:
    """Every `size` examples as ragged rows [size, (n)], without the other features."""
    return only(dataset, feature_key).ragged_batch(size)


# Helpers -----------------------------------------------------------------------------------------------------------


def only(dataset: tf.data.Dataset, key: str) -> tf.data.Dataset:
    """The dataset without its other features."""
    if list(dataset.element_spec) == [key]:
        return dataset
    return dataset.map(rows.as_written(lambda example: {key: example[key]}), num_parallel_calls=tf.data.AUTOTUNE)


def length_without_eos(feature: str, sequence_length: Mapping[str, int], output_features) -> int:
    """The configured length of a feature, less one where EOS will be added.

    Raises:
      UserError: none is configured.
    """
    if not sequence_length or feature not in sequence_length:
        raise UserError(
            f"TASK_FEATURE_LENGTHS lacks {feature}, to whose length this objective cuts; for example "
            '{"inputs": 512, "targets": 114}'
        )
    return sequence_length[feature] - int(output_features[feature].add_eos)


def _ceil_div(a, b):
    return -(-a // b)


def _feature_groups(feature_key, additional, passthrough) -> tuple[list[str], list[str]]:
    """Names of the features to cut together and of those to leave alone; ValueError where they overlap."""
    together, untouched = [feature_key, *(additional or ())], list(passthrough or ())
    if overlap := set(together) & set(untouched):
        raise ValueError(f"features both cut and passed through: {sorted(overlap)}")
    return together, untouched


def _segment_lengths(sizes: tf.Tensor, length) -> tf.Tensor:
    """Lengths of the segments of documents of `sizes` tokens [d], in order; a document's last one may be shorter."""
    number = tf.ragged.range(_ceil_div(sizes, length))
    return tf.minimum(length, rows.of(number, sizes) - length * number.values)
