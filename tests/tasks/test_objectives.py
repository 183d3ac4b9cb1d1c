"""Masks, fills, lengths and cutting: the properties by which span corruption is defined."""

from collections import Counter
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import scipy.stats
import seqio
import tensorflow as tf

from t5x_lite.errors import UserError
from t5x_lite.tasks import objectives

BYTES = seqio.ByteVocabulary(extra_ids=100)
FEATURES = {
    "inputs": seqio.Feature(vocabulary=BYTES, add_eos=True),
    "targets": seqio.Feature(vocabulary=BYTES, add_eos=True),
}


def seeds(n: int, count: int = 2) -> tf.Tensor:
    return tf.stack([[n, i] for i in range(count)])


def runs(mask) -> list[tuple[bool, int]]:
    return [(bool(k), len(list(g))) for k, g in itertools.groupby(mask)]


def dataset(*documents) -> tf.data.Dataset:
    return tf.data.Dataset.from_generator(
        lambda: ({"targets": np.array(d, np.int32)} for d in documents),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )


def listed(ds) -> list[list[int]]:
    return [e["targets"].tolist() for e in ds.as_numpy_iterator()]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 700),
    density=st.floats(0.05, 0.5),
    mean=st.floats(1.0, 20.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_span_mask_has_the_exact_counts_and_ends(length, density, mean, seed):
    mask = objectives.random_spans_noise_mask(length, density, seeds(seed), mean_noise_span_length=mean).numpy()
    noise = int(np.clip(np.round(np.float32(length) * np.float32(density)), 1, length - 1))
    spans = max(1, int(np.round(np.float32(noise) / np.float32(mean))))
    assert mask.shape == (length,)
    assert not mask[0] and mask[-1]
    assert mask.sum() == noise
    assert sum(kind for kind, _ in runs(mask)) == min(spans, noise, length - noise)


def test_span_mask_of_t5_has_85_noise_tokens_in_28_spans():
    for seed in range(50):
        mask = objectives.random_spans_noise_mask(568, 0.15, seeds(seed)).numpy()
        assert (mask.sum(), sum(kind for kind, _ in runs(mask))) == (85, 28)


@pytest.mark.parametrize("length", [0, 1])
def test_span_mask_of_next_to_nothing_is_all_text(length):
    assert objectives.random_spans_noise_mask(length, 0.15, seeds(1)).numpy().tolist() == [False] * length


def test_roll_reaches_every_position_and_keeps_the_count():
    masks = [
        objectives.random_spans_noise_mask(12, 0.25, seeds(i), mean_noise_span_length=3.0, random_roll=True).numpy()
        for i in range(150)
    ]
    assert {int(m.sum()) for m in masks} == {3}
    assert np.any(masks, axis=0).all()


@pytest.mark.parametrize("items, segments", [(6, 3), (5, 2), (7, 4), (4, 4), (5, 1)])
def test_segmentation_is_uniform_over_all_compositions(items, segments):
    draws = 3000
    ds = tf.data.Dataset.range(draws)
    ds = ds.map(lambda i: objectives.random_segmentation(items, segments, tf.stack([i, 7 * i])))
    drawn = np.stack(list(ds.as_numpy_iterator()))
    compositions = [c for c in itertools.product(range(1, items + 1), repeat=segments) if sum(c) == items]
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(compositions)
    if len(compositions) > 1:
        assert scipy.stats.chisquare([counts[c] for c in compositions]).pvalue > 1e-4


def test_iid_mask_has_its_density_and_no_memory():
    mask = objectives.iid_noise_mask(40_000, 0.15, seeds(3)).numpy()
    assert abs(mask.mean() - 0.15) < 0.01
    assert abs((mask[1:] & mask[:-1]).mean() - 0.15**2) < 0.005


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 300), seed=st.integers(0, 2**31 - 1))
def test_splicing_targets_into_inputs_restores_the_tokens(length, seed):
    tokens = np.random.default_rng(seed).integers(3, 259, length).astype(np.int32)
    mask = objectives.random_spans_noise_mask(length, 0.15, seeds(seed))
    inputs = objectives.noise_span_to_unique_sentinel(tf.constant(tokens), mask, BYTES, seeds(0)).numpy().tolist()
    targets = objectives.nonnoise_span_to_unique_sentinel(tf.constant(tokens), mask, BYTES, seeds(0)).numpy().tolist()
    spans: dict[int, list[int]] = {}
    for t in targets:
        if t >= 259:
            current = spans.setdefault(t, [])
        else:
            current.append(t)
    assert list(spans) == [358 - i for i in range(len(spans))]  # the highest id first, then down
    restored = [x for t in inputs for x in (spans[t] if t >= 259 else [t])]
    assert restored == tokens.tolist()


def test_fills_by_hand():
    tokens, mask = tf.constant([10, 11, 12, 13, 14, 15]), tf.constant([True, False, False, True, True, False])
    args = (tokens, mask, BYTES, seeds(0))
    assert objectives.noise_span_to_unique_sentinel(*args).numpy().tolist() == [358, 11, 12, 357, 15]
    assert objectives.nonnoise_span_to_unique_sentinel(*args).numpy().tolist() == [10, 358, 13, 14, 357]
    assert objectives.drop_noise_tokens(*args).numpy().tolist() == [11, 12, 15]
    assert objectives.drop_nonnoise_tokens(*args).numpy().tolist() == [10, 13, 14]


def test_first_sentinel_is_the_highest_id():
    assert objectives.sentinel_id(BYTES) == 358
    assert objectives.sentinel_id(BYTES, return_value=7) == 7


@pytest.mark.parametrize(
    "inputs, density, mean, expected",
    [
        (512, 0.15, 3.0, (568, 114)),
        (512, 0.15, 2.0, (552, 126)),
        (512, 0.15, 5.0, (581, 105)),
        (512, 0.15, 10.0, (591, 99)),
        (1024, 0.15, 3.0, (1137, 229)),
        (1024, 0.15, 20.0, (1193, 189)),
        (512, 0.5, 3.0, (766, 512)),
        (512, 0.15, 64.0, (600, 92)),
        (512, 0.5, 64.0, (1006, 512)),
    ],
)
def test_lengths(inputs, density, mean, expected):
    assert objectives.random_spans_helper(inputs, density, mean, 1, 1) == expected


def test_chunk_is_one_whole_block_and_every_block_comes_up():
    document = list(range(3, 28))  # 25 tokens in blocks of 10: 10, 10, 5
    with seqio.map_seed_manager(5):
        ds = objectives.select_random_chunk(dataset(*[document] * 120, []), FEATURES, max_length=10)
        chunks = Counter(map(tuple, listed(ds)))
    assert set(chunks) == {tuple(document[:10]), tuple(document[10:20]), tuple(document[20:])}
    assert min(chunks.values()) > 20


def test_chunk_from_a_uniform_start_and_of_a_drawn_length():
    document = list(range(3, 28))
    with seqio.map_seed_manager(5):
        ds = objectives.select_random_chunk(
            dataset(*[document] * 300), FEATURES, max_length=10, min_length=4, uniform_random_start=True
        )
        chunks = listed(ds)
    assert all(0 < len(c) < 10 and c == list(range(c[0], c[0] + len(c))) for c in chunks)
    assert {c[0] for c in chunks} == set(document)  # clipped starts included
    assert {len(c) for c in chunks} >= {4, 9}


def test_chunk_takes_its_length_from_the_feature():
    ds = objectives.select_random_chunk(dataset([5] * 8), FEATURES, sequence_length={"targets": 9})
    assert listed(ds) == [[5] * 8]
    with pytest.raises(ValueError, match="max_length"):
        objectives.select_random_chunk(dataset([5]), FEATURES)


def test_concat_joins_in_order_without_separators_and_keeps_the_last_group():
    documents = [[3, 4], [5, 0, 6], [7], [8, 9, 10], [11]]
    assert listed(objectives.reduce_concat_tokens(dataset(*documents), batch_size=2)) == [
        [3, 4, 5, 6],
        [7, 8, 9, 10],
        [11],
    ]


def test_split_cuts_into_full_segments_and_a_shorter_last_one():
    ds = objectives.split_tokens(dataset(range(3, 13), [], [7, 8]), max_tokens_per_segment=4)
    assert listed(ds) == [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12], [7, 8]]


def test_split_lengths_leave_room_for_eos():
    lengths = {"inputs": 6, "targets": 4}
    document = dataset(range(3, 14))
    to_inputs = objectives.split_tokens_to_inputs_length(document, lengths, FEATURES)
    to_targets = objectives.split_tokens_to_targets_length(document, lengths, FEATURES)
    assert [len(x) for x in listed(to_inputs)] == [5, 5, 1]
    assert [len(x) for x in listed(to_targets)] == [3, 3, 3, 2]


def test_split_draws_lengths_between_the_bounds():
    with seqio.map_seed_manager(1):
        ds = objectives.split_tokens(
            dataset(*[range(3, 259)] * 100), min_tokens_per_segment=4, max_tokens_per_segment=64
        )
        lengths = [len(x) for x in listed(ds) if x[0] == 3]
    assert min(lengths) >= 4 and max(lengths) <= 64
    # Log-uniform: half of the documents are below the geometric mean, 16, where uniform draws would put a fifth.
    assert 30 <= sum(n <= 16 for n in lengths) <= 70


def test_split_carries_other_features():
    ds = tf.data.Dataset.from_tensors({"targets": [3, 4, 5], "w": [1.0, 2.0, 3.0], "id": "x", "lost": 1})
    out = objectives.split_tokens(
        ds, max_tokens_per_segment=2, additional_feature_keys=["w"], passthrough_feature_keys=["id"]
    )
    rows = [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in e.items()} for e in out.as_numpy_iterator()]
    assert rows == [{"targets": [3, 4], "w": [1, 2], "id": b"x"}, {"targets": [5], "w": [3], "id": b"x"}]
    with pytest.raises(ValueError, match="both"):
        objectives.split_tokens(ds, max_tokens_per_segment=2, passthrough_feature_keys=["targets"])


def test_span_corruption_fills_the_lengths_exactly_and_repeats_itself():
    text = dataset(*[np.random.default_rng(i).integers(3, 259, 300) for i in range(20)])

    def run(seed):
        with seqio.map_seed_manager(seed):
            ds = objectives.span_corruption(text, {"inputs": 64, "targets": 40}, FEATURES)
            return [(e["inputs"].tolist(), e["targets"].tolist()) for e in ds.as_numpy_iterator()]

    tokens, targets_length = objectives.random_spans_helper(64, 0.15, 3.0, 1, 1)
    first = run(1)
    assert len(first) == -(-6000 // tokens)
    assert {(len(i) + 1, len(t) + 1) for i, t in first[:-1]} == {(64, targets_length)}
    assert first == run(1)
    assert first != run(2)
    # Every example draws its own mask: sentinels stand elsewhere in almost all of them.
    places = Counter(tuple(n for n, t in enumerate(i) if t >= 259) for i, _ in first[:-1])
    assert len(places) > 0.9 * (len(first) - 1)


def test_span_corruption_names_the_length_it_needs():
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS = \{'inputs': 512, 'targets': 114\}"):
        objectives.span_corruption(dataset([3]), {"inputs": 512, "targets": 113}, FEATURES)


def test_span_corruption_can_leave_documents_apart_and_pass_features_through():
    ds = tf.data.Dataset.from_tensor_slices({"targets": [[3] * 10, [4] * 10], "id": ["a", "b"]})
    out = objectives.span_corruption(
        ds,
        {"inputs": 64, "targets": 40},
        FEATURES,
        merge_examples_to_reduce_padding=False,
        passthrough_feature_keys=["id"],
    )
    rows = list(out.as_numpy_iterator())
    assert [r["id"] for r in rows] == [b"a", b"b"]
    assert set(rows[0]["targets"].tolist()) == {3, 358}
    with pytest.raises(ValueError, match="merge"):
        objectives.span_corruption(ds, {"inputs": 64, "targets": 40}, FEATURES, passthrough_feature_keys=["id"])


def test_denoise_wants_one_vocabulary():
    other = FEATURES | {"inputs": seqio.Feature(vocabulary=seqio.ByteVocabulary(extra_ids=5))}
    with pytest.raises(ValueError, match="vocabulary"):
        objectives.denoise(dataset([3]), other, 0.15, objectives.iid_noise_mask, objectives.drop_noise_tokens)


def test_denoise_without_targets_fn_keeps_the_text():
    ds = objectives.denoise(
        dataset(range(3, 50)), FEATURES, 0.5, objectives.iid_noise_mask, objectives.drop_noise_tokens
    )
    (example,) = ds.as_numpy_iterator()
    assert example["targets"].tolist() == list(range(3, 50))
    assert 0 < len(example["inputs"]) < 47
