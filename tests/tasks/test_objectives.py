"""Masks and fills: the properties by which they are defined, for one segment and for many at once."""

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.tasks import preprocessors
from t5x_lite.tasks.objectives import fills, masks

BYTES = seqio.ByteVocabulary(extra_ids=100)  # ids 3 to 258 are bytes, 358 down to 259 sentinels


def seeds(n: int, count: int = 2) -> tf.Tensor:
    return tf.stack([[n, i] for i in range(count)])


def runs(mask) -> list[tuple[bool, int]]:
    return [(bool(k), len(list(g))) for k, g in itertools.groupby(mask)]


def even(counts, cases: int) -> bool:
    """Whether counts of `cases` equally likely outcomes look it."""
    return len(counts) == cases and scipy.stats.chisquare(list(counts.values())).pvalue > 1e-4


# Masks --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(2, 700), density=st.floats(0.05, 0.5), mean=st.floats(1.0, 20.0), seed=st.integers(0, 2**31 - 1)
)
def test_span_mask_has_the_exact_counts_and_ends(length, density, mean, seed):
    mask = preprocessors.random_spans_noise_mask(length, density, seeds(seed), mean_noise_span_length=mean).numpy()
    noise = int(np.clip(np.round(np.float32(length) * np.float32(density)), 1, length - 1))
    spans = max(1, int(np.round(np.float32(noise) / np.float32(mean))))
    assert mask.shape == (length,)
    assert not mask[0] and mask[-1]
    assert mask.sum() == noise
    assert sum(kind for kind, _ in runs(mask)) == min(spans, noise, length - noise)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=6), seed=st.integers(0, 2**31 - 1))
def test_span_masks_of_many_segments_are_each_as_of_one(lengths, seed):
    many = masks.random_spans_noise_mask(lengths, 0.3, seeds(seed), mean_noise_span_length=2.5)
    for length, mask in zip(lengths, many.to_list(), strict=True):
        alone = masks.random_spans_noise_mask(length, 0.3, seeds(seed), mean_noise_span_length=2.5).numpy()
        assert len(mask) == length and sum(mask) == alone.sum() and len(runs(mask)) == len(runs(alone))
        assert length < 2 or (not mask[0] and mask[-1])


def test_span_mask_of_t5_has_85_noise_tokens_in_28_spans():
    for mask in masks.random_spans_noise_mask([568] * 300, 0.15, seeds(1)).numpy():
        assert (mask.sum(), sum(kind for kind, _ in runs(mask))) == (85, 28)


@pytest.mark.parametrize("length", [0, 1])
def test_span_mask_of_next_to_nothing_is_all_text(length):
    assert preprocessors.random_spans_noise_mask(length, 0.15, seeds(1)).numpy().tolist() == [False] * length


def test_roll_reaches_every_position_and_keeps_the_count():
    rolled = masks.random_spans_noise_mask([12] * 300, 0.25, seeds(5), mean_noise_span_length=3.0, random_roll=True)
    assert set(rolled.numpy().sum(axis=1)) == {3}
    assert even(Counter(tuple(m) for m in rolled.numpy().tolist()), 12)  # one span, begun anywhere


@pytest.mark.parametrize("items, segments", [(6, 3), (5, 2), (7, 4), (4, 4), (5, 1)])
def test_segmentation_is_uniform_over_all_compositions(items, segments):
    # Beside a longer row, so that there are segments to fill up with.
    drawn = masks.random_segmentation(tf.constant([items] * 3000 + [9]), tf.constant([segments] * 3000 + [5]), [1, 2])
    drawn = drawn.numpy()[:-1]
    assert not drawn[:, segments:].any()
    counts = Counter(map(tuple, drawn[:, :segments].tolist()))
    compositions = [c for c in itertools.product(range(1, items + 1), repeat=segments) if sum(c) == items]
    assert set(counts) == set(compositions)
    assert len(compositions) == 1 or even(counts, len(compositions))


def test_iid_mask_has_its_density_and_no_memory():
    mask = preprocessors.iid_noise_mask(40_000, 0.15, seeds(3)).numpy()
    assert abs(mask.mean() - 0.15) < 0.01
    assert abs((mask[1:] & mask[:-1]).mean() - 0.15**2) < 0.005


@settings(max_examples=25, deadline=None)
@given(density=st.floats(0.1, 0.5), seed=st.integers(0, 2**31 - 1))
def test_regular_masks_repeat_one_span_at_one_distance(density, seed):
    drawn = masks.regular_noise_mask([120] * 8, density, seeds(seed), min_span_length=2, max_span_length=4).numpy()
    for mask in drawn:
        inner = runs(mask)[1:-1]  # the first and the last may be cut off
        (span,) = {n for noise, n in inner if noise}
        (gap,) = {n for noise, n in inner if not noise}
        assert 2 <= span <= 4
        assert span + gap == int(np.round(np.float32(span) / np.float32(density)))
    assert len({tuple(mask) for mask in drawn.tolist()}) > 1


def test_regular_masks_begin_anywhere():
    drawn = masks.regular_noise_mask([24] * 3000, 0.25, seeds(2), min_span_length=3, max_span_length=3).numpy()
    assert even(Counter(map(tuple, drawn.tolist())), 12)  # the period


@pytest.mark.parametrize("density, prefixes", [(0.5, range(1, 9)), (0.25, range(4, 9)), (0.0, range(8, 9))])
def test_prefixes_are_uniform_between_their_bounds(density, prefixes):
    drawn = masks.random_prefix_noise_mask([9] * 3000, density, seeds(4)).numpy()
    lengths = drawn.sum(axis=1)
    assert all((mask[:n]).all() for mask, n in zip(drawn, lengths, strict=True))
    assert set(lengths) == set(prefixes)
    assert len(prefixes) == 1 or even(Counter(lengths.tolist()), len(prefixes))


def test_prefix_of_next_to_nothing_and_of_too_much():
    assert masks.random_prefix_noise_mask([0, 1, 2], 0.5, seeds(1)).to_list() == [[], [False], [True, False]]
    with pytest.raises(ValueError, match="at most 0.5"):
        masks.random_prefix_noise_mask(5, 0.6, seeds(1))


@pytest.mark.parametrize(
    "mask_fn",
    [masks.iid_noise_mask, masks.regular_noise_mask, masks.random_spans_noise_mask, masks.random_prefix_noise_mask],
)
def test_the_same_seeds_give_the_same_mask(mask_fn):
    one, again, other = (mask_fn([90] * 4, 0.3, seeds(n)).numpy() for n in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    assert (one[0] != one[1]).any(), "segments have masks of their own"


# Fills --------------------------------------------------------------------------------------------------------------


def test_fills_by_hand():
    tokens, mask = tf.constant([10, 11, 12, 13, 14, 15]), tf.constant([True, False, False, True, True, False])
    args = (tokens, mask, BYTES, seeds(0))
    assert preprocessors.noise_span_to_unique_sentinel(*args).numpy().tolist() == [358, 11, 12, 357, 15]
    assert preprocessors.nonnoise_span_to_unique_sentinel(*args).numpy().tolist() == [10, 358, 13, 14, 357]
    assert preprocessors.drop_noise_tokens(*args).numpy().tolist() == [11, 12, 15]
    assert preprocessors.drop_nonnoise_tokens(*args).numpy().tolist() == [10, 13, 14]
    assert preprocessors.noise_token_to_sentinel(*args).numpy().tolist() == [358, 11, 12, 358, 358, 15]
    assert preprocessors.noise_span_to_sentinel(*args).numpy().tolist() == [358, 11, 12, 358, 15]
    assert preprocessors.nonnoise_span_to_sentinel(*args).numpy().tolist() == [10, 358, 13, 14, 358]
    assert preprocessors.noise_span_after_unique_sentinel(*args).numpy().tolist() == [358, 10, 357, 13, 14]


def random_segments(seed, density=0.4):
    rng = np.random.default_rng(seed)
    lengths = [0, *rng.integers(0, 40, 4), 0]
    tokens = [rng.integers(3, 259, n).astype(np.int32).tolist() for n in lengths]
    noise = [(rng.random(n) < density).tolist() for n in lengths]
    return tokens, noise, (tf.ragged.constant(tokens, tf.int32, 1), tf.ragged.constant(noise, tf.bool, 1))


@pytest.mark.parametrize(
    "fill",
    [
        fills.noise_token_to_sentinel,
        fills.noise_span_to_sentinel,
        fills.nonnoise_span_to_sentinel,
        fills.noise_span_to_unique_sentinel,
        fills.nonnoise_span_to_unique_sentinel,
        fills.noise_span_after_unique_sentinel,
        fills.drop_noise_tokens,
        fills.drop_nonnoise_tokens,
    ],
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_many_segments_are_filled_as_each_alone(fill, seed):
    tokens, noise, together = random_segments(seed)
    for row, t, n in zip(fill(*together, BYTES, seeds(0)).to_list(), tokens, noise, strict=True):
        assert row == fill(tf.constant(t, tf.int32), tf.constant(n, tf.bool), BYTES, seeds(0)).numpy().tolist()


def spliced(inputs, targets) -> list[int]:
    """What is left of the inputs, each sentinel replaced by what follows it in the targets."""
    spans: dict[int, list[int]] = {}
    for t in targets:
        if t >= 259:
            assert t not in spans
            current = spans.setdefault(t, [])
        else:
            current.append(t)
    assert list(spans) == [358 - i for i in range(len(spans))]  # the highest id first, then down
    return [x for t in inputs for x in (spans[t] if t >= 259 else [t])]


@pytest.mark.parametrize("aligned", [False, True])
@settings(max_examples=30, deadline=None)
@given(length=st.integers(2, 300), seed=st.integers(0, 2**31 - 1))
def test_splicing_targets_into_inputs_restores_the_tokens(aligned, length, seed):
    """Of span masks with either targets, of any mask with aligned ones."""
    tokens = np.random.default_rng(seed).integers(3, 259, length).astype(np.int32)
    mask_fn = masks.iid_noise_mask if aligned else masks.random_spans_noise_mask
    targets_fn = fills.noise_span_after_unique_sentinel if aligned else fills.nonnoise_span_to_unique_sentinel
    args = (tf.constant(tokens), mask_fn(length, 0.15, seeds(seed)), BYTES, seeds(0))
    inputs = fills.noise_span_to_unique_sentinel(*args).numpy().tolist()
    assert spliced(inputs, targets_fn(*args).numpy().tolist()) == tokens.tolist()


def test_first_sentinel_is_the_highest_id():
    assert preprocessors.sentinel_id(BYTES) == 358
    assert preprocessors.sentinel_id(BYTES, return_value=7) == 7


def test_more_spans_than_sentinels_are_an_error_or_run_into_ordinary_ids():
    few = seqio.ByteVocabulary(extra_ids=2)
    args = (tf.range(10, 16), tf.constant([True, False] * 3), few, seeds(0))
    for fill in (fills.noise_span_to_unique_sentinel, fills.noise_span_after_unique_sentinel):
        with pytest.raises(tf.errors.InvalidArgumentError, match="2 sentinels.*overflow = True"):
            fill(*args)
    assert fills.noise_span_to_unique_sentinel(*args, overflow=True).numpy().tolist() == [260, 11, 259, 13, 258, 15]


def test_sentinels_inside_a_sentencepiece_model_are_counted(corpus_dir, tmp_path):
    from t5x_lite.tasks.pydocs import vocabulary

    shipped = vocabulary.PydocsVocabulary()
    (tmp_path / "with.model").write_bytes(vocabularies.from_seqio(shipped).model_proto)
    inside = seqio.SentencePieceVocabulary(str(tmp_path / "with.model"), extra_ids=0)
    assert inside.extra_ids == 0 and fills.sentinel_count(inside) == fills.sentinel_count(shipped) == 100


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_permuting_moves_noise_alone_and_within_its_segment(seed):
    tokens, noise, together = random_segments(seed)
    permuted = fills.permute_noise_tokens(*together, BYTES, seeds(seed)).to_list()
    for row, t, n in zip(permuted, tokens, noise, strict=True):
        assert [x for x, moved in zip(row, n) if not moved] == [x for x, moved in zip(t, n) if not moved]
        assert sorted(row) == sorted(t)


def test_every_permutation_is_as_likely():
    tokens, mask = tf.ragged.constant([[5, 6, 7, 8]] * 3000), tf.ragged.constant([[True, False, True, True]] * 3000)
    assert even(Counter(map(tuple, fills.permute_noise_tokens(tokens, mask, BYTES, seeds(1)).to_list())), 6)


def test_gathered_tokens_come_from_the_segment():
    tokens = tf.ragged.constant([[5, 6, 7]] * 2000 + [[9]])
    mask = tf.ragged.constant([[True, False, False]] * 2000 + [[True]])
    gathered = fills.noise_token_to_gathered_token(tokens, mask, BYTES, seeds(1)).to_list()
    assert gathered[-1] == [9] and {tuple(row[1:]) for row in gathered[:-1]} == {(6, 7)}
    assert even(Counter(row[0] for row in gathered[:-1]), 3)


def test_random_tokens_are_any_but_the_reserved():
    tokens, mask = tf.zeros([40_000], tf.int32) + 300, tf.range(40_000) % 2 == 0
    made = fills.noise_token_to_random_token(tokens, mask, BYTES, seeds(1)).numpy()
    assert (made[1::2] == 300).all() and set(made[::2]) == set(range(3, 359))


@pytest.mark.parametrize(
    "fill, sentinels, others",
    [(fills.noise_token_to_random_token_or_sentinel, 0.9, 0.1), (fills.bert_noise_tokens, 0.8, 0.1)],
)
def test_mixtures_have_their_shares(fill, sentinels, others):
    tokens, mask = tf.zeros([40_000], tf.int32) + 2, tf.range(40_000) % 2 == 0  # 2 is reserved: never drawn
    made = fill(tokens, mask, BYTES, seeds(1)).numpy()
    assert (made[1::2] == 2).all()
    changed = made[::2]
    assert abs((changed == 358).mean() - sentinels - others / 356) < 0.015
    assert abs(((changed != 358) & (changed != 2)).mean() - others * 355 / 356) < 0.01
    assert abs((changed == 2).mean() - (1 - sentinels - others)) < 0.01


def test_shares_of_more_than_one():
    with pytest.raises(UserError, match="more than 1 together"):
        fills.bert_noise_tokens(tf.constant([5]), tf.constant([True]), BYTES, seeds(1), sentinel_prob=0.95)
