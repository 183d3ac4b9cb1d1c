"""Segments, a mask and two fills make examples; `unsupervised` is the chain of preprocessors that gin chooses."""

from collections.abc import Callable, Mapping, Sequence

import seqio
import tensorflow as tf

import gin
from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import documents, rows
from t5x_lite.tasks.objectives.names import configurable

SEGMENTS_AT_ONCE = 64
_PROBED = 64  # segments by which lengths are judged before the first example

MaskFn = Callable[..., tf.Tensor]
FillFn = Callable[..., tf.Tensor]


@configurable
def unsupervised(
    dataset: tf.data.Dataset,
    preprocessors: Sequence[Callable[..., tf.data.Dataset]] | None = None,
    output_features: Mapping[str, seqio.Feature] | None = None,
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    """The preprocessors in turn. gin says which, when the pipeline is built: an objective is a gin file.

    Args:
      preprocessors: of datasets; each is given `output_features` and `sequence_length` where it takes them.

    Raises:
      UserError: no preprocessors.
    """
    if not preprocessors:
        raise UserError(
            "unsupervised.preprocessors is not set: choose an objective, for example "
            "--gin_file=objectives/span_3_15_u_u.gin"
        )
    for preprocessor in preprocessors:
        preprocessor = seqio.utils.add_kwargs_to_transform(
            preprocessor, output_features=output_features, sequence_length=sequence_length
        )
        dataset = preprocessor(dataset)
    return dataset


@configurable
def denoise(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    noise_density: float = gin.REQUIRED,
    noise_mask_fn: MaskFn = gin.REQUIRED,
    inputs_fn: FillFn = gin.REQUIRED,
    targets_fn: FillFn | None = None,
    passthrough_feature_keys: Sequence[str] | None = None,
    input_feature_key: str = "inputs",
    sequence_length: Mapping[str, int] | None = None,
    segment_length: int | None = None,
    **unused_kwargs,
) -> tf.data.Dataset:
    """Turns `targets`, [n] or ragged rows [r, (n)], into a corrupted input and what is to be restored, one by one.

    Functions of this package are given many segments at once. Others, and any where features are passed through, are
    given one at a time.

    Args:
      noise_density: share of the tokens to corrupt.
      noise_mask_fn: `(length, noise_density, seeds=[2, 2]) -> bool [n]`.
      inputs_fn: fill function that makes `input_feature_key`.
      targets_fn: fill function that makes `targets`; None keeps the whole text.
      passthrough_feature_keys: features kept as they are.
      sequence_length: if given, checked on segments as long as the longest: targets that do not fit on average are an
        error, and so are more spans than sentinels.
      segment_length: the longest segment's; by default what fits in the inputs uncorrupted.

    Raises:
      UserError: `sequence_length` is too short for the targets, or the vocabulary has too few sentinels.
      ValueError: inputs and targets have different vocabularies, or a made feature is also passed through.
    """
    if passthrough_feature_keys and {input_feature_key, "targets"} & set(passthrough_feature_keys):
        raise ValueError(f"denoise makes {input_feature_key!r} and 'targets': they cannot be passed through")
    vocabulary = output_features["targets"].vocabulary
    if input_feature_key in output_features and vocabulary != output_features[input_feature_key].vocabulary:
        raise ValueError(f"denoise needs one vocabulary for {input_feature_key!r} and 'targets'")

    def corrupt(tokens, lengths, seeds):
        mask = noise_mask_fn(lengths, noise_density, seeds=seeds[:2])
        inputs = inputs_fn(tokens, mask, vocabulary, seeds=seeds[2:4])
        targets = targets_fn(tokens, mask, vocabulary, seeds=seeds[4:6]) if targets_fn else tokens
        return {input_feature_key: inputs, "targets": targets}

    @seqio.map_over_dataset(num_seeds=6)
    @rows.as_written
    def corrupt_rows(batch, seeds):
        tokens = batch["targets"]
        return corrupt(tokens, rows.lengths_of(tokens), seeds)

    @seqio.map_over_dataset(num_seeds=6)
    def corrupt_one(example, seeds):
        tokens = example["targets"]
        return {k: example[k] for k in passthrough_feature_keys or ()} | corrupt(tokens, tf.size(tokens), seeds)

    by_rows = all(map(rows.takes_rows, (noise_mask_fn, inputs_fn, targets_fn or inputs_fn)))
    if by_rows and sequence_length is not None:
        longest = segment_length or documents.length_without_eos(input_feature_key, sequence_length, output_features)
        eos = int(output_features["targets"].add_eos)
        _check_lengths(corrupt, longest, eos, input_feature_key, sequence_length)
    in_rows = rows.are_in(dataset, "targets")
    if by_rows and not passthrough_feature_keys:
        batches = dataset if in_rows else documents.in_batches(dataset, "targets", SEGMENTS_AT_ONCE)
        return rows.apart(corrupt_rows(batches))
    return corrupt_one(rows.apart(dataset) if in_rows else dataset)


def _check_lengths(corrupt, length: int, eos: int, input_feature_key: str, sequence_length) -> None:
    """Tries segments of `length`; UserError if their targets do not fit on average, or their sentinels run out."""
    tokens = rows.from_lengths(tf.fill([_PROBED * length], 3), tf.fill([_PROBED], length))
    try:
        made = corrupt(tokens, rows.lengths_of(tokens), tf.reshape(tf.range(12), [6, 2]))
    except tf.errors.InvalidArgumentError as e:
        raise UserError(str(e.message)) from e
    needed = round(float(tf.reduce_mean(tf.cast(rows.lengths_of(made["targets"]), tf.float32)))) + eos
    if sequence_length["targets"] < needed:
        raise too_short(sequence_length, input_feature_key, needed, f"the objective on average, of {length} tokens,")


def too_short(sequence_length: Mapping[str, int], input_feature_key: str, needed: int, what: str) -> UserError:
    """The error where `what` makes more targets than there is room for."""
    lengths = f"{{'{input_feature_key}': {sequence_length[input_feature_key]}, 'targets': {needed}}}"
    return UserError(
        f"TASK_FEATURE_LENGTHS gives targets {sequence_length['targets']} tokens, but {what} makes "
        f"{needed}: set TASK_FEATURE_LENGTHS = {lengths}"
    )
