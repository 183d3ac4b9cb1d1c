"""T5's objectives as ready chains: tokenized documents in `targets` -> `inputs` and `targets`, EOS not yet added.

Every document gives one random piece of at most 65,536 tokens, so that no long one outweighs the others. Where 128
pieces are joined before they are cut into segments, nearly no padding is left.
"""

import functools
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

import gin
from t5x_lite.seqio_names import check_named
from t5x_lite.tasks.objectives import denoising, documents, fills, masks, rows
from t5x_lite.tasks.objectives.names import configurable

# Lengths of span corruption ----------------------------------------------------------------------------------------


@configurable
def random_spans_helper(
    inputs_length: int = gin.REQUIRED,
    noise_density: float = gin.REQUIRED,
    mean_noise_span_length: float = gin.REQUIRED,
    extra_tokens_per_span_inputs: int = gin.REQUIRED,
    extra_tokens_per_span_targets: int = gin.REQUIRED,
    verbose: bool = False,
) -> tuple[int, int]:
    """The longest text whose corrupted form fits in `inputs_length`, and the targets that it makes: (tokens, targets).

    Both counted lengths include EOS. (512, 0.15, 3.0, 1, 1) gives (568, 114).

    Raises:
      ValueError: `inputs_length` is too short to hold any corrupted text.
    """

    def lengths(tokens: int) -> tuple[int, int]:
        # At least one of each, as in the mask: T5 counts none in very short texts, and cuts a token off later.
        noise = max(1, round(tokens * noise_density))
        spans = max(1, round(noise / mean_noise_span_length))
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


@configurable
def random_spans_tokens_length() -> int:
    """The tokens of `random_spans_helper`, whose arguments are gin bindings."""
    return random_spans_helper()[0]


@configurable
def random_spans_targets_length() -> int:
    """The targets of `random_spans_helper`, whose arguments are gin bindings."""
    return random_spans_helper()[1]


# Chains ------------------------------------------------------------------------------------------------------------


@configurable
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
    """T5's pretraining objective: spans replaced by sentinels, to be given back in order.

    Documents are joined and cut to the length that fills the inputs exactly: for 512 inputs, 568 tokens make 512 inputs
    and 114 targets, both with EOS.

    Args:
      mean_noise_span_length: tokens in a corrupted span, on average.
      noise_density: share of the tokens to corrupt.
      merge_examples_to_reduce_padding: join documents first; without it, short documents stay short.
      reserved_for_packing: tokens of the inputs' length to leave free.

    Raises:
      UserError: the configured length of `targets` is shorter than what the objective makes.
      ValueError: documents are joined and features are to be passed through, which joining would lose.
    """
    check_named([input_feature_key, "targets"], sequence_length or {})
    inputs_length = sequence_length[input_feature_key] - (reserved_for_packing or 0)
    tokens_length, targets_length = random_spans_helper(
        inputs_length=inputs_length,
        noise_density=noise_density,
        mean_noise_span_length=mean_noise_span_length,
        extra_tokens_per_span_inputs=1,
        extra_tokens_per_span_targets=1,
    )
    if sequence_length["targets"] < targets_length:
        raise denoising.too_short(
            sequence_length, input_feature_key, targets_length, f"span corruption of {inputs_length} input tokens"
        )
    if merge_examples_to_reduce_padding and passthrough_feature_keys:
        raise ValueError("passthrough_feature_keys needs merge_examples_to_reduce_padding=False")

    if passthrough_feature_keys:
        dataset = documents.select_random_chunk(
            dataset,
            output_features,
            max_length=documents.LONGEST_PIECE,
            passthrough_feature_keys=passthrough_feature_keys,
        )
        dataset = documents.split_tokens(
            dataset, max_tokens_per_segment=tokens_length, passthrough_feature_keys=passthrough_feature_keys
        )
    else:
        dataset = documents.segments(dataset, tokens_length, joined=merge_examples_to_reduce_padding)
    return denoising.denoise(
        dataset,
        output_features,
        noise_density=noise_density,
        noise_mask_fn=functools.partial(masks.random_spans_noise_mask, mean_noise_span_length=mean_noise_span_length),
        inputs_fn=fills.noise_span_to_unique_sentinel,
        targets_fn=fills.nonnoise_span_to_unique_sentinel,
        passthrough_feature_keys=passthrough_feature_keys,
        input_feature_key=input_feature_key,
        sequence_length=sequence_length,
        segment_length=tokens_length,
    )


@configurable
def iid_denoising(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    noise_density: float = 0.15,
    aligned: bool = False,
) -> tf.data.Dataset:
    """The study's baseline: tokens corrupted one by one; runs of them replaced by sentinels, to be given back in order.

    Args:
      noise_density: share of the tokens to corrupt.
      aligned: sentinels of the targets are those of the inputs, also where a segment starts with noise; by default they
        are the paper's, see `fills.nonnoise_span_to_unique_sentinel`.
    """
    targets_fn = fills.noise_span_after_unique_sentinel if aligned else fills.nonnoise_span_to_unique_sentinel
    return _denoised_iid(
        dataset, sequence_length, output_features, noise_density, fills.noise_span_to_unique_sentinel, targets_fn
    )


@configurable
def bert_style(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    noise_density: float = 0.15,
    inputs_fn: denoising.FillFn = fills.noise_token_to_random_token_or_sentinel,
) -> tf.data.Dataset:
    """Tokens corrupted one by one, 90 % to the first sentinel and 10 % to any token; targets are the whole text.

    Args:
      inputs_fn: `fills.bert_noise_tokens` for BERT's own 80, 10 and 10 % of them left as they are.
    """
    return _denoised_iid(dataset, sequence_length, output_features, noise_density, inputs_fn, None)


@configurable
def mass_style(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    noise_density: float = 0.15,
) -> tf.data.Dataset:
    """`bert_style` with sentinels only, as the paper has it for MASS (Song et al. 2019, 1905.02450)."""
    return _denoised_iid(dataset, sequence_length, output_features, noise_density, fills.noise_token_to_sentinel, None)


@configurable
def deshuffling(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """The tokens of a segment in any order, to be given back in theirs. Documents are not joined."""
    length = documents.length_without_eos("inputs", sequence_length, output_features)
    return denoising.denoise(
        documents.segments(dataset, length, joined=False),
        output_features,
        noise_density=1.0,
        noise_mask_fn=masks.iid_noise_mask,
        inputs_fn=fills.permute_noise_tokens,
        targets_fn=None,
        sequence_length=sequence_length,
    )


@configurable
def prefix_lm(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    noise_density: float = 0.5,
) -> tf.data.Dataset:
    """Segments cut in two at a random place: the first part is the input, the second the target.

    Documents are not joined.

    Args:
      noise_density: at one half, every place is as likely as any other; below, targets have at most twice this share.

    Raises:
      UserError: the configured length of `targets` is shorter than the longest second part.
    """
    check_named(["inputs", "targets"], sequence_length or {})
    tokens = documents.length_without_eos("inputs", sequence_length, output_features)
    shortest_prefix = max(1, round((1 - 2 * noise_density) * (tokens - 1)))
    longest = tokens - shortest_prefix + int(output_features["targets"].add_eos)
    if sequence_length["targets"] < longest:
        raise denoising.too_short(sequence_length, "inputs", longest, f"prefix_lm of {tokens} tokens")
    return denoising.denoise(
        documents.segments(dataset, tokens, joined=False),
        output_features,
        noise_density=noise_density,
        noise_mask_fn=masks.random_prefix_noise_mask,
        inputs_fn=fills.drop_nonnoise_tokens,
        targets_fn=fills.drop_noise_tokens,
    )


@configurable
def full_lm(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Joined documents, each with its EOS, cut to the length of `targets`; no inputs. What T5 was LM-adapted on."""
    check_named(["targets"], sequence_length or {})
    feature = output_features["targets"]
    end = feature.vocabulary.eos_id if feature.add_eos else None
    return rows.apart(documents.segments(dataset, sequence_length["targets"], joined=True, end=end))


@configurable
def lm_segments(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Joined documents cut to the length of `targets`, less EOS, which the task gives each segment; no inputs.

    The study's language model objective.
    """
    length = documents.length_without_eos("targets", sequence_length, output_features)
    return rows.apart(documents.segments(dataset, length, joined=True))


# Rows of the model, packed two by two ------------------------------------------------------------------------------


def trim_and_pad_dataset(dataset: tf.data.Dataset, sequence_length: Mapping[str, int]) -> tf.data.Dataset:
    """Every feature named in `sequence_length` cut, or filled up with zeros, to its length."""
    return seqio.utils.trim_and_pad_dataset(dataset, feature_lengths=sequence_length)


def targets_for_prefix_lm_objective(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """`full_lm`, the last segment of a group filled up: what the two below split at random."""
    return trim_and_pad_dataset(full_lm(dataset, sequence_length, output_features), sequence_length)


def pack_prefix_lm_encoder_decoder(
    ds: tf.data.Dataset, sequence_length: Mapping[str, int], pad_id: int = 0
) -> tf.data.Dataset:
    """Two examples a row: one split at p, the other at length - p, so that both sides are full.

    Returns:
      features of an encoder-decoder's packed row, int32 [length]: encoder_input_tokens, decoder_target_tokens,
      decoder_input_tokens, decoder_loss_weights, and segment ids and positions of both sides. An odd last example is
      lost.

    Raises:
      ValueError: lengths that are odd, or differ.
    """
    length = _one_even_length(sequence_length)
    place = tf.range(length)

    @seqio.map_over_dataset(num_seeds=1)
    def pack(pair, seed):
        split = tf.random.stateless_uniform([], seed, 1, length, tf.int32)
        one, other = pair["targets"][0], pair["targets"][1]
        targets = tf.concat([one[split:], other[length - split :]], axis=0)
        features = {
            "encoder_input_tokens": tf.concat([one[:split], other[: length - split]], axis=0),
            "decoder_target_tokens": targets,
            "decoder_loss_weights": tf.cast(targets != pad_id, tf.int32),
        }
        for side, end in (("encoder", split), ("decoder", length - split)):
            features[f"{side}_segment_ids"] = tf.where(place < end, 1, 2)
            features[f"{side}_positions"] = tf.where(place < end, place, place - end)
        features["decoder_input_tokens"] = seqio.utils.make_autoregressive_inputs(
            targets, sequence_id=features["decoder_segment_ids"]
        )
        return {name: tf.ensure_shape(value, [length]) for name, value in features.items()}

    return pack(ds.batch(2, drop_remainder=True))


def pack_prefix_lm_decoder_only(
    ds: tf.data.Dataset, sequence_length: Mapping[str, int], loss_on_targets_only: bool = True, pad_id: int = 0
) -> tf.data.Dataset:
    """One example a row, split at a random place p: tokens before p, and the one at p, are seen by all before it.

    Returns:
      features of a language model's row, int32 [length]: decoder_target_tokens, decoder_input_tokens,
      decoder_loss_weights (1 from p on, or everywhere), decoder_causal_attention.

    Raises:
      ValueError: lengths that are odd, or differ.
    """
    length = _one_even_length(sequence_length)
    place = tf.range(length)

    @seqio.map_over_dataset(num_seeds=1)
    def pack(example, seed):
        split = tf.random.stateless_uniform([], seed, 1, length, tf.int32)
        targets = example["targets"]
        learnt = tf.logical_and(targets != pad_id, place >= (split if loss_on_targets_only else 0))
        return {
            "decoder_target_tokens": targets,
            "decoder_input_tokens": seqio.utils.make_autoregressive_inputs(targets),
            "decoder_loss_weights": tf.cast(learnt, tf.int32),
            "decoder_causal_attention": tf.cast(place <= split, tf.int32),
        }

    return pack(ds)


# Helpers -----------------------------------------------------------------------------------------------------------


def _denoised_iid(dataset, sequence_length, output_features, noise_density, inputs_fn, targets_fn) -> tf.data.Dataset:
    length = documents.length_without_eos("inputs", sequence_length, output_features)
    return denoising.denoise(
        documents.segments(dataset, length, joined=True),
        output_features,
        noise_density=noise_density,
        noise_mask_fn=masks.iid_noise_mask,
        inputs_fn=inputs_fn,
        targets_fn=targets_fn,
        sequence_length=sequence_length,
    )


def _one_even_length(sequence_length: Mapping[str, int]) -> int:
    (length, *others) = sequence_length.values()
    if length % 2 or any(other != length for other in others):
        raise ValueError(f"packing prefix LM examples needs one even length for all features, not {sequence_length}")
    return length
