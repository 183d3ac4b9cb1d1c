"""Fills: what stands for the tokens on one side of an example.

Each is `(tokens [n], noise_mask [n], vocabulary, seeds) -> int32 [m]`. Tokens and mask may also be ragged, [r, (n)],
many segments at once; so is the result then. Names say what becomes of noise, or (`nonnoise_`) of text. Sentinels are
the last ids of the vocabulary: `<extra_id_0>` is the highest.
"""

import seqio
import tensorflow as tf

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import rows
from t5x_lite.tasks.objectives.names import configurable

_RESERVED = 3  # padding, EOS and unknown


# Sentinels ---------------------------------------------------------------------------------------------------------


@configurable
def sentinel_id(vocabulary: seqio.Vocabulary, return_value: int | None = None) -> int:
    """Id of the first sentinel, the highest of the vocabulary (`return_value` overrides it); later ones count down."""
    return vocabulary.vocab_size - 1 if return_value is None else return_value


def sentinel_count(vocabulary: seqio.Vocabulary) -> int:
    """How many sentinels a vocabulary has, also where they are pieces of the model itself."""
    if vocabulary.extra_ids or not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.extra_ids
    pieces, count = vocabulary.tokenizer, 0
    while "<extra_id_" in pieces.id_to_piece(vocabulary.vocab_size - 1 - count):
        count += 1
    return count


@configurable
@rows.fill_of_rows
def noise_token_to_sentinel(tokens, noise_mask, vocabulary, seeds):
    """Every noise token becomes the first sentinel, the same for all: as long as before."""
    del seeds
    return tokens.with_values(tf.where(noise_mask.values, sentinel_id(vocabulary), tokens.values))


@configurable
@rows.fill_of_rows
def noise_span_to_sentinel(tokens, noise_mask, vocabulary, seeds):
    """Every run of noise becomes the first sentinel, the same for all."""
    del seeds
    first, rest = _runs(noise_mask)
    values = tf.where(first, sentinel_id(vocabulary), tokens.values)
    return rows.keep(tokens.with_values(values), tf.logical_not(rest))


@configurable
@rows.fill_of_rows
def nonnoise_span_to_sentinel(tokens, noise_mask, vocabulary, seeds):
    """Every run of text becomes the first sentinel, the same for all."""
    return noise_span_to_sentinel(tokens, _not(noise_mask), vocabulary, seeds)


@configurable
@rows.fill_of_rows
def noise_span_to_unique_sentinel(tokens, noise_mask, vocabulary, seeds, overflow: bool = False):
    """Every run of noise becomes one sentinel, the first run the highest id and each later run one less.

    Args:
      overflow: what T5 does where there are more runs than sentinels: go on with the ids below, which are ordinary
        pieces. Otherwise that is an error when the pipeline runs.
    """
    del seeds
    first, rest = _runs(noise_mask)
    values = _with_sentinels(tokens, first, vocabulary, overflow)
    return rows.keep(tokens.with_values(values), tf.logical_not(rest))


@configurable
@rows.fill_of_rows
def nonnoise_span_to_unique_sentinel(tokens, noise_mask, vocabulary, seeds, overflow: bool = False):
    """Every run of text becomes one sentinel: the paper's targets to go with `noise_span_to_unique_sentinel`.

    Its sentinels are the inputs' where a segment starts with text. Where it starts with noise, these tokens have none
    in front, and every later run has the sentinel of the run before: `[X] c d [Y]` goes with `a b [X] e`. Masks of
    spans start with text and end with noise; the i.i.d. mask does as it likes (see `noise_span_after_unique_sentinel`).
    """
    return noise_span_to_unique_sentinel(tokens, _not(noise_mask), vocabulary, seeds, overflow=overflow)


@configurable
@rows.fill_of_rows
def noise_span_after_unique_sentinel(tokens, noise_mask, vocabulary, seeds, overflow: bool = False):
    """Every run of noise, after the sentinel that stands for it in `noise_span_to_unique_sentinel`. Not in T5.

    The aligned form of `nonnoise_span_to_unique_sentinel`, and equal to it for masks that start with text and end with
    noise: inputs `[X] c d [Y]` go with `[X] a b [Y] e`.
    """
    del seeds
    first, rest = _runs(noise_mask)
    sentinels = _with_sentinels(tokens, first, vocabulary, overflow)
    pairs = tf.RaggedTensor.from_row_splits(
        tf.reshape(tf.stack([sentinels, tokens.values], axis=1), [-1]), 2 * tokens.row_splits, validate=False
    )
    return rows.keep(pairs, tf.reshape(tf.stack([first, tf.logical_or(first, rest)], axis=1), [-1]))


def _runs(noise_mask: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first tokens of runs of noise, and their other tokens: bool [all tokens] twice."""
    mask = noise_mask.values
    number = tf.size(mask)
    begins = tf.math.bincount(rows.starts_of(noise_mask), minlength=number + 1)[:number] > 0
    goes_on = tf.logical_and(tf.concat([[False], mask], axis=0)[:number], tf.logical_not(begins))
    return tf.logical_and(mask, tf.logical_not(goes_on)), tf.logical_and(mask, goes_on)


def _with_sentinels(tokens: tf.RaggedTensor, first: tf.Tensor, vocabulary, overflow: bool) -> tf.Tensor:
    """The tokens [all], those of `first` replaced by their row's sentinels in turn."""
    places = tf.where(first)
    row = tf.searchsorted(tokens.row_splits, places[:, 0], side="right") - 1
    earlier = tf.searchsorted(places[:, 0], tf.gather(tokens.row_splits, row))  # runs of the rows before
    run = tf.range(tf.size(row)) - earlier
    checks = []
    if not overflow:
        count = sentinel_count(vocabulary)
        message = (
            f"a segment has more spans than the vocabulary's {count} sentinels: corrupt less or longer spans, "
            "shorten TASK_FEATURE_LENGTHS, take a vocabulary with more extra_ids, or let sentinels run into "
            "ordinary ids as T5 does, with noise_span_to_unique_sentinel.overflow = True and the same for the "
            "targets' fill"
        )
        checks = [tf.debugging.Assert(tf.reduce_all(run < count), [message])]
    with tf.control_dependencies(checks):
        sentinels = tf.cast(sentinel_id(vocabulary) - run, tokens.dtype)
    return tf.tensor_scatter_nd_update(tokens.values, places, sentinels)


def _not(noise_mask: tf.RaggedTensor) -> tf.RaggedTensor:
    return noise_mask.with_values(tf.logical_not(noise_mask.values))


# Dropped -----------------------------------------------------------------------------------------------------------


@configurable
@rows.fill_of_rows
def drop_noise_tokens(tokens, noise_mask, vocabulary, seeds):
    """The text alone."""
    del vocabulary, seeds
    return rows.keep(tokens, tf.logical_not(noise_mask.values))


@configurable
@rows.fill_of_rows
def drop_nonnoise_tokens(tokens, noise_mask, vocabulary, seeds):
    """The noise alone."""
    del vocabulary, seeds
    return rows.keep(tokens, noise_mask.values)


# Other tokens, as many as before -----------------------------------------------------------------------------------


@configurable
@rows.fill_of_rows
def permute_noise_tokens(tokens, noise_mask, vocabulary, seeds):
    """Noise tokens change places among themselves, every order of a segment's noise alike."""
    del vocabulary
    values = tf.boolean_mask(tokens.values, noise_mask.values)
    row = tf.cast(tf.boolean_mask(rows.ids(tokens), noise_mask.values), tf.int64)
    keys = tf.random.stateless_uniform(tf.shape(values), seeds[0], 0, 2**31 - 1, tf.int32)
    order = tf.argsort(row * 2**31 + tf.cast(keys, tf.int64))  # row by row, within it at random
    places = tf.cast(tf.where(noise_mask.values), tf.int32)
    return tokens.with_values(tf.tensor_scatter_nd_update(tokens.values, places, tf.gather(values, order)))


@configurable
@rows.fill_of_rows
def noise_token_to_gathered_token(tokens, noise_mask, vocabulary, seeds):
    """Every noise token becomes a token from a uniformly drawn place of its segment."""
    del vocabulary
    place = rows.uniform_below(rows.of(tokens, rows.lengths_of(tokens)), seeds[0])
    other = tf.gather(tokens.values, place + rows.of(tokens, rows.starts_of(tokens)))
    return tokens.with_values(tf.where(noise_mask.values, other, tokens.values))


@configurable
@rows.fill_of_rows
def noise_token_to_random_token(tokens, noise_mask, vocabulary, seeds, num_reserved_tokens: int = _RESERVED):
    """Every noise token becomes any id from `num_reserved_tokens` on, sentinels among them, as in T5."""
    values = tokens.values
    draws = tf.random.stateless_uniform(
        tf.shape(values), seeds[0], num_reserved_tokens, vocabulary.vocab_size, values.dtype
    )
    return tokens.with_values(tf.where(noise_mask.values, draws, values))


@configurable
@rows.fill_of_rows
def noise_token_to_random_token_or_sentinel(tokens, noise_mask, vocabulary, seeds, random_prob: float = 0.1):
    """Every noise token becomes, with `random_prob`, any id and else the first sentinel: T5's BERT-style inputs."""
    return bert_noise_tokens(
        tokens, noise_mask, vocabulary, seeds, sentinel_prob=1 - random_prob, random_prob=random_prob
    )


@configurable
@rows.fill_of_rows
def bert_noise_tokens(tokens, noise_mask, vocabulary, seeds, sentinel_prob: float = 0.8, random_prob: float = 0.1):
    """BERT's corruption: of the noise 80 % becomes the first sentinel, 10 % any id, and the rest stays. Not in T5.

    Source: Devlin et al. 2018 (https://arxiv.org/abs/1810.04805), section 3.1.

    Raises:
      UserError: the probabilities are more than 1 together.
    """
    if sentinel_prob + random_prob > 1 + 1e-6:
        raise UserError(
            f"bert_noise_tokens: sentinel_prob = {sentinel_prob} and random_prob = {random_prob} are more "
            "than 1 together; lower one"
        )
    draws = tf.random.stateless_uniform(tf.shape(tokens.values), seed=seeds[0])
    random = noise_token_to_random_token(tokens, noise_mask, vocabulary, seeds[1:]).values
    sentinels = noise_token_to_sentinel(tokens, noise_mask, vocabulary, ()).values
    kept = tf.where(draws < random_prob + sentinel_prob, sentinels, tokens.values)
    return tokens.with_values(tf.where(draws < random_prob, random, kept))
