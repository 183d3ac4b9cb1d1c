"""Unsupervised objectives as seqio preprocessors: cut text, corrupt spans, make inputs and targets.

Names and signatures are those of `t5.data.preprocessors`: task modules written for T5 need only their import changed.
Token functions are of two kinds. *Dataset* functions map a `tf.data.Dataset` of dicts of int32 [n] tensors to another.
*Mask* functions, `(length, noise_density, seeds) -> bool [length]`, say which tokens are noise, and *fill* functions,
`(tokens [n], noise_mask [n], vocabulary, seeds) -> int32 [m]`, turn tokens and mask into one side of an example.
`seeds` are stateless seeds, int32 [k, 2]: the same example in the same place is always corrupted in the same way.

Source: "Exploring the Limits of Transfer Learning" (https://arxiv.org/abs/1910.10683), sections 3.1.4 and 3.3.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math

import seqio
import tensorflow as tf

from t5x_lite.errors import UserError

MaskFn = Callable[..., tf.Tensor]
FillFn = Callable[..., tf.Tensor]


# Cutting and joining documents -------------------------------------------------------------------------------------


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
        max_length = _length_without_eos(feature_key, sequence_length, output_features)

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


def reduce_concat_tokens(
    dataset: tf.data.Dataset, feature_key: str = "targets", batch_size: int = 128, **unused_kwargs
) -> tf.data.Dataset:
    """Joins every `batch_size` consecutive documents into one (the last group may be smaller).

    Nothing is put between documents: no separator, no EOS. Zeros (padding) are removed, all other features are lost.
    """
    tokens = dataset.map(lambda example: {feature_key: example[feature_key]}, num_parallel_calls=tf.data.AUTOTUNE)
    groups = tokens.padded_batch(batch_size, padded_shapes={feature_key: [-1]})

    def join(group):
        flat = tf.reshape(group[feature_key], [-1])
        return {feature_key: tf.boolean_mask(flat, flat != 0)}

    return groups.map(join, num_parallel_calls=tf.data.AUTOTUNE)


def split_tokens(
    dataset: tf.data.Dataset,
    min_tokens_per_segment: int | None = None,
    max_tokens_per_segment: int | None = None,
    feature_key: str = "targets",
    additional_feature_keys: Sequence[str] | None = None,
    passthrough_feature_keys: Sequence[str] | None = None,
    **unused_kwargs,
) -> tf.data.Dataset:
    """Cuts every non-empty document into ceil(n / length) segments of `max_tokens_per_segment`, the last one shorter.

    With `min_tokens_per_segment` each document draws its own length, log-uniform between the two. Features named in
    `additional_feature_keys` are cut alike, those in `passthrough_feature_keys` are repeated with every segment.

    Raises:
      ValueError: no `max_tokens_per_segment`, or a feature is both cut and passed through.
    """
    if max_tokens_per_segment is None:
        raise ValueError("split_tokens needs max_tokens_per_segment")
    together, untouched = _feature_groups(feature_key, additional_feature_keys, passthrough_feature_keys)

    @seqio.map_over_dataset(num_seeds=1)
    def cut(example, seed):
        length = tf.constant(max_tokens_per_segment, tf.int32)
        if min_tokens_per_segment is not None:
            low, high = math.log(min_tokens_per_segment), math.log(max_tokens_per_segment)
            length = tf.cast(tf.round(tf.exp(tf.random.stateless_uniform([], seed, low, high))), tf.int32)
        size = tf.size(example[feature_key])
        segments = _ceil_div(size, length)
        rows = {}
        for k in together:
            padded = tf.pad(example[k], [[0, segments * length - size]])
            rows[k] = tf.reshape(padded, [segments, length])
        lengths = tf.minimum(length, size - length * tf.range(segments))
        kept = {k: tf.repeat(example[k][tf.newaxis], segments, axis=0) for k in untouched}
        return rows | kept, lengths

    def trim(row, length):
        return {k: v[:length] if k in together else v for k, v in row.items()}

    rows = cut(dataset.filter(lambda example: tf.size(example[feature_key]) > 0)).unbatch()
    return rows.map(trim, num_parallel_calls=tf.data.AUTOTUNE)


def split_tokens_to_inputs_length(dataset, sequence_length, output_features, **kwargs) -> tf.data.Dataset:
    """`split_tokens` to the length of `inputs`, less one where EOS will be added."""
    length = _length_without_eos("inputs", sequence_length, output_features)
    return split_tokens(dataset, max_tokens_per_segment=length, **kwargs)


def split_tokens_to_targets_length(dataset, sequence_length, output_features, **kwargs) -> tf.data.Dataset:
    """`split_tokens` to the length of `targets`, less one where EOS will be added."""
    length = _length_without_eos("targets", sequence_length, output_features)
    return split_tokens(dataset, max_tokens_per_segment=length, **kwargs)


# Corruption --------------------------------------------------------------------------------------------------------


def denoise(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    noise_density: float,
    noise_mask_fn: MaskFn,
    inputs_fn: FillFn,
    targets_fn: FillFn | None = None,
    passthrough_feature_keys: Sequence[str] | None = None,
    input_feature_key: str = "inputs",
    **unused_kwargs,
) -> tf.data.Dataset:
    """Turns `targets` [n] into a corrupted input and what is to be restored.

    Args:
      noise_density: share of the tokens to corrupt.
      noise_mask_fn: `(length, noise_density, seeds=[2, 2]) -> bool [n]`.
      inputs_fn: fill function that makes `input_feature_key`.
      targets_fn: fill function that makes `targets`; None keeps the whole text.
      passthrough_feature_keys: features kept as they are.

    Raises:
      ValueError: inputs and targets have different vocabularies, or a made feature is also passed through.
    """
    if passthrough_feature_keys and {input_feature_key, "targets"} & set(passthrough_feature_keys):
        raise ValueError(f"denoise makes {input_feature_key!r} and 'targets': they cannot be passed through")
    vocabulary = output_features["targets"].vocabulary
    if input_feature_key in output_features and vocabulary != output_features[input_feature_key].vocabulary:
        raise ValueError(f"denoise needs one vocabulary for {input_feature_key!r} and 'targets'")

    @seqio.map_over_dataset(num_seeds=6)
    def corrupt(example, seeds):
        tokens = example["targets"]
        mask = noise_mask_fn(tf.size(tokens), noise_density, seeds=seeds[:2])
        inputs = inputs_fn(tokens, mask, vocabulary, seeds=seeds[2:4])
        targets = targets_fn(tokens, mask, vocabulary, seeds=seeds[4:6]) if targets_fn else tokens
        kept = {k: example[k] for k in passthrough_feature_keys or ()}
        return kept | {input_feature_key: inputs, "targets": targets}

    return corrupt(dataset)


def span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    mean_noise_span_length: float = 3.0,
    noise_density: float = 0.15,
    input_feature_key: str = "inputs",
    merge_examples_to_reduce_padding: bool = True,
    reserved_for_packing: int | None = None,
    passthrough_feature_keys: Sequence[str] | None = None,
) -> tf.data.Dataset:
    """T5's pretraining objective on tokenized `targets`: spans replaced by sentinels, to be given back in order.

    Documents are joined and cut to the length that fills the inputs exactly: for 512 inputs, 568 tokens make 512 inputs
    and 114 targets, both with EOS (which the task adds after this).

    Args:
      mean_noise_span_length: tokens in a corrupted span, on average.
      noise_density: share of the tokens to corrupt.
      merge_examples_to_reduce_padding: join documents first; without it, short documents stay short.
      reserved_for_packing: tokens of the inputs' length to leave free.

    Raises:
      UserError: the configured length of `targets` is shorter than what the objective makes.
      ValueError: documents are joined and features are to be passed through, which joining would lose.
    """
    inputs_length = sequence_length[input_feature_key]
    if reserved_for_packing:
        inputs_length -= reserved_for_packing
    tokens_length, targets_length = random_spans_helper(
        inputs_length=inputs_length,
        noise_density=noise_density,
        mean_noise_span_length=mean_noise_span_length,
        extra_tokens_per_span_inputs=1,
        extra_tokens_per_span_targets=1,
    )
    if sequence_length["targets"] < targets_length:
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives targets {sequence_length['targets']} tokens, but span corruption of "
            f"{inputs_length} input tokens makes {targets_length}: set TASK_FEATURE_LENGTHS = "
            f"{{'{input_feature_key}': {sequence_length[input_feature_key]}, 'targets': {targets_length}}}"
        )
    if merge_examples_to_reduce_padding and passthrough_feature_keys:
        raise ValueError("passthrough_feature_keys needs merge_examples_to_reduce_padding=False")

    dataset = select_random_chunk(
        dataset, output_features, max_length=65536, passthrough_feature_keys=passthrough_feature_keys
    )
    if merge_examples_to_reduce_padding:
        dataset = reduce_concat_tokens(dataset, batch_size=128)
    dataset = split_tokens(
        dataset, max_tokens_per_segment=tokens_length, passthrough_feature_keys=passthrough_feature_keys
    )
    return denoise(
        dataset,
        output_features,
        noise_density=noise_density,
        noise_mask_fn=functools.partial(random_spans_noise_mask, mean_noise_span_length=mean_noise_span_length),
        inputs_fn=noise_span_to_unique_sentinel,
        targets_fn=nonnoise_span_to_unique_sentinel,
        passthrough_feature_keys=passthrough_feature_keys,
        input_feature_key=input_feature_key,
    )


def random_spans_helper(
    inputs_length: int,
    noise_density: float,
    mean_noise_span_length: float,
    extra_tokens_per_span_inputs: int,
    extra_tokens_per_span_targets: int,
    verbose: bool = False,
) -> tuple[int, int]:
    """The longest text whose corrupted form fits in `inputs_length`, and the targets that it makes: (tokens, targets).

    Both counted lengths include EOS. (512, 0.15, 3.0, 1, 1) gives (568, 114).

    Raises:
      ValueError: `inputs_length` is too short to hold any corrupted text.
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_noise_span_length)
        inputs = tokens - noise + spans * extra_tokens_per_span_inputs + 1
        return inputs, noise + spans * extra_tokens_per_span_targets + 1

    tokens = inputs_length - 1
    if tokens < 1:
        raise ValueError(f"inputs_length must be at least 2, got {inputs_length}")
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    targets = lengths(tokens)[1]
    # At one half both sides should be equally long, as they are but for rounding.
    if noise_density == 0.5 and targets > inputs_length:
        tokens, targets = tokens - 1, targets - 1
    if verbose:
        print(f"span corruption: {tokens} tokens make {inputs_length} inputs and {targets} targets")
    return tokens, targets


# Masks: which tokens are noise -------------------------------------------------------------------------------------


def iid_noise_mask(length, noise_density: float, seeds) -> tf.Tensor:
    """Every token by itself with probability `noise_density`: bool [length]. Uses the first of `seeds`."""
    return tf.random.stateless_uniform([length], seed=seeds[0]) < noise_density


def random_spans_noise_mask(
    length, noise_density: float, seeds, mean_noise_span_length: float = 3.0, random_roll: bool = False
) -> tf.Tensor:
    """A fixed number of noise tokens in a fixed number of spans, their lengths uniform over all ways to do it.

    The mask starts with text and ends with noise, so the last token is always noise: where one span suffices for the
    whole sequence, only its tail would ever be corrupted, and `random_roll` rotates the mask by a random offset.

    Args:
      length: number of tokens; may be a scalar tensor.
      seeds: [2, 2] (one for each kind of span; the roll uses a seed derived from them).

    Returns:
      bool [length], True where noise.
    """
    wanted = tf.convert_to_tensor(length, tf.int32)
    size = tf.maximum(wanted, 2)  # room for one span of each kind
    noise = tf.cast(tf.round(tf.cast(size, tf.float32) * noise_density), tf.int32)
    noise = tf.clip_by_value(noise, 1, size - 1)
    spans = tf.cast(tf.round(tf.cast(noise, tf.float32) / mean_noise_span_length), tf.int32)
    # Every span holds a token, of both kinds: beyond one half of noise, text is what runs out.
    spans = tf.clip_by_value(spans, 1, tf.minimum(noise, size - noise))
    noise_lengths = random_segmentation(noise, spans, seeds[0])
    text_lengths = random_segmentation(size - noise, spans, seeds[1])
    lengths = tf.reshape(tf.stack([text_lengths, noise_lengths], axis=1), [-1])
    kinds = tf.range(2 * spans) % 2 == 1
    mask = tf.repeat(kinds, lengths)[:wanted]
    if random_roll:
        roll_seed = seeds[0] + seeds[1]
        offset = tf.random.stateless_uniform([], roll_seed, 0, tf.maximum(wanted, 1), tf.int32)
        mask = tf.roll(mask, offset, axis=0)
    return tf.ensure_shape(mask, [length if isinstance(length, int) else None])


def random_segmentation(items, segments, seed) -> tf.Tensor:
    """`items` split into `segments` positive parts, every composition equally likely: int32 [segments].

    The ends of the first `segments - 1` parts are a uniformly drawn subset of the `items - 1` gaps between items.
    """
    gaps = items - 1
    order = tf.argsort(tf.random.stateless_uniform([gaps], seed, dtype=tf.int32, minval=None, maxval=None))
    cuts = tf.sort(order[: segments - 1]) + 1
    ends = tf.concat([cuts, [items]], axis=0)
    return ends - tf.concat([[0], cuts], axis=0)


# Fills: what stands for the tokens of one side ---------------------------------------------------------------------


def sentinel_id(vocabulary: seqio.Vocabulary, return_value: int | None = None) -> int:
    """Id of the first sentinel, the highest of the vocabulary (`return_value` overrides it); later ones count down."""
    return vocabulary.vocab_size - 1 if return_value is None else return_value


def noise_span_to_unique_sentinel(tokens, noise_mask, vocabulary, seeds) -> tf.Tensor:
    """Every run of noise becomes one sentinel, the first run the highest id and each later run one less."""
    del seeds
    before = tf.concat([[False], noise_mask[:-1]], axis=0)
    first = tf.logical_and(noise_mask, tf.logical_not(before))
    rest = tf.logical_and(noise_mask, before)
    runs = tf.cumsum(tf.cast(first, tokens.dtype))  # 1 in the first run, 2 in the second
    sentinels = tf.cast(sentinel_id(vocabulary) + 1, tokens.dtype) - runs
    return tf.boolean_mask(tf.where(first, sentinels, tokens), tf.logical_not(rest))


def nonnoise_span_to_unique_sentinel(tokens, noise_mask, vocabulary, seeds) -> tf.Tensor:
    """Every run of text becomes one sentinel: the targets that go with `noise_span_to_unique_sentinel`."""
    return noise_span_to_unique_sentinel(tokens, tf.logical_not(noise_mask), vocabulary, seeds)


def drop_noise_tokens(tokens, noise_mask, vocabulary, seeds) -> tf.Tensor:
    """The text alone."""
    del vocabulary, seeds
    return tf.boolean_mask(tokens, tf.logical_not(noise_mask))


def drop_nonnoise_tokens(tokens, noise_mask, vocabulary, seeds) -> tf.Tensor:
    """The noise alone."""
    del vocabulary, seeds
    return tf.boolean_mask(tokens, noise_mask)


# Helpers -----------------------------------------------------------------------------------------------------------


def _ceil_div(a, b):
    return -(-a // b)


def _length_without_eos(feature: str, sequence_length, output_features) -> int:
    return sequence_length[feature] - int(output_features[feature].add_eos)


def _feature_groups(feature_key, additional, passthrough) -> tuple[list[str], list[str]]:
    """Names of the features to cut together and of those to leave alone; ValueError where they overlap."""
    together, untouched = [feature_key, *(additional or ())], list(passthrough or ())
    if overlap := set(together) & set(untouched):
        raise ValueError(f"features both cut and passed through: {sorted(overlap)}")
    return together, untouched
