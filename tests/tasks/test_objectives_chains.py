"""Documents cut and joined, and the chains that make examples of them."""

from collections import Counter

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x_lite.errors import UserError
from t5x_lite.tasks import preprocessors
from t5x_lite.tasks.objectives import documents, rows
from t5x_lite.tasks.objectives.ul2 import DENOISERS

BYTES = seqio.ByteVocabulary(extra_ids=100)
FEATURES = {
    "inputs": seqio.Feature(vocabulary=BYTES, add_eos=True),
    "targets": seqio.Feature(vocabulary=BYTES, add_eos=True),
}


def dataset(*documents) -> tf.data.Dataset:
    return tf.data.Dataset.from_generator(
        lambda: ({"targets": np.array(d, np.int32)} for d in documents),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )


def texts(number=20, length=300) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(3, 259, length) for i in range(number)]


def listed(ds) -> list[list[int]]:
    return [e["targets"].tolist() for e in ds.as_numpy_iterator()]


def examples(chain, ds, lengths, seed=1, **kwargs) -> list[tuple[list[int], list[int]]]:
    with seqio.map_seed_manager(seed):
        made = chain(ds, lengths, FEATURES, **kwargs)
        made = list(made.as_numpy_iterator())
    return [(e["inputs"].tolist() if "inputs" in e else None, e["targets"].tolist()) for e in made]


# Documents ----------------------------------------------------------------------------------------------------------


def test_chunk_is_one_whole_block_and_every_block_comes_up():
    document = list(range(3, 28))  # 25 tokens in blocks of 10: 10, 10, 5
    with seqio.map_seed_manager(5):
        ds = preprocessors.select_random_chunk(dataset(*[document] * 120, []), FEATURES, max_length=10)
        chunks = Counter(map(tuple, listed(ds)))
    assert set(chunks) == {tuple(document[:10]), tuple(document[10:20]), tuple(document[20:])}
    assert min(chunks.values()) > 20


def test_chunk_from_a_uniform_start_and_of_a_drawn_length():
    document = list(range(3, 28))
    with seqio.map_seed_manager(5):
        ds = preprocessors.select_random_chunk(
            dataset(*[document] * 300), FEATURES, max_length=10, min_length=4, uniform_random_start=True
        )
        chunks = listed(ds)
    assert all(0 < len(c) < 10 and c == list(range(c[0], c[0] + len(c))) for c in chunks)
    assert {c[0] for c in chunks} == set(document)  # clipped starts included
    assert {len(c) for c in chunks} >= {4, 9}


def test_chunk_takes_its_length_from_the_feature():
    ds = preprocessors.select_random_chunk(dataset([5] * 8), FEATURES, sequence_length={"targets": 9})
    assert listed(ds) == [[5] * 8]
    with pytest.raises(ValueError, match="max_length"):
        preprocessors.select_random_chunk(dataset([5]), FEATURES)


def test_concat_joins_in_order_without_separators_and_keeps_the_last_group():
    documents = [[3, 4], [5, 0, 6], [7], [8, 9, 10], [11]]
    assert listed(preprocessors.reduce_concat_tokens(dataset(*documents), batch_size=2)) == [
        [3, 4, 5, 6],
        [7, 8, 9, 10],
        [11],
    ]


def test_split_cuts_into_full_segments_and_a_shorter_last_one():
    ds = preprocessors.split_tokens(dataset(range(3, 13), [], [7, 8]), max_tokens_per_segment=4)
    assert listed(ds) == [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12], [7, 8]]


def test_split_lengths_leave_room_for_eos():
    lengths = {"inputs": 6, "targets": 4}
    document = dataset(range(3, 14))
    to_inputs = preprocessors.split_tokens_to_inputs_length(document, lengths, FEATURES)
    to_targets = preprocessors.split_tokens_to_targets_length(document, lengths, FEATURES)
    assert [len(x) for x in listed(to_inputs)] == [5, 5, 1]
    assert [len(x) for x in listed(to_targets)] == [3, 3, 3, 2]


def test_split_draws_lengths_between_the_bounds():
    with seqio.map_seed_manager(1):
        ds = preprocessors.split_tokens(
            dataset(*[range(3, 259)] * 100), min_tokens_per_segment=4, max_tokens_per_segment=64
        )
        lengths = [len(x) for x in listed(ds) if x[0] == 3]
    assert min(lengths) >= 4 and max(lengths) <= 64
    # Log-uniform: half of the documents are below the geometric mean, 16, where uniform draws would put a fifth.
    assert 30 <= sum(n <= 16 for n in lengths) <= 70


def test_split_carries_other_features():
    ds = tf.data.Dataset.from_tensors({"targets": [3, 4, 5], "w": [1.0, 2.0, 3.0], "id": "x", "lost": 1})
    out = preprocessors.split_tokens(
        ds, max_tokens_per_segment=2, additional_feature_keys=["w"], passthrough_feature_keys=["id"]
    )
    rows = [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in e.items()} for e in out.as_numpy_iterator()]
    assert rows == [{"targets": [3, 4], "w": [1, 2], "id": b"x"}, {"targets": [5], "w": [3], "id": b"x"}]
    with pytest.raises(ValueError, match="both"):
        preprocessors.split_tokens(ds, max_tokens_per_segment=2, passthrough_feature_keys=["targets"])


def test_the_other_ways_to_cut():
    lengths = {"inputs": 20, "targets": 4}
    with seqio.map_seed_manager(1):
        drawn = listed(preprocessors.split_tokens_to_random_length(dataset(*[range(3, 60)] * 50), lengths, FEATURES))
    first = {len(x) for x in drawn if x[0] == 3}
    assert min(first) >= 8 and max(first) <= 19 and len(first) > 4
    fixed = preprocessors.concatenate_and_split_to_fixed_length(dataset(range(3, 8), [9, 9]), lengths, FEATURES)
    assert listed(fixed) == [[3, 4, 5], [6, 7, 9], [9]]
    trimmed = preprocessors.trim_tokens_at_front(dataset(range(3, 13), [7]), {"targets": 4}, FEATURES)
    assert listed(trimmed) == [[10, 11, 12], [7]]
    strings = tf.data.Dataset.from_tensor_slices({"targets": ["", "ab", "abcd"]})
    kept = preprocessors.filter_by_string_length(strings, max_length=3)
    assert [e["targets"] for e in kept.as_numpy_iterator()] == [b"ab"]


@pytest.mark.parametrize("joined", [True, False])
def test_one_step_cuts_as_the_single_steps_do(joined):
    ds = dataset(*texts(300, 31), [], [5, 0, 6])
    steps = preprocessors.select_random_chunk(ds, FEATURES, max_length=65536)
    if joined:
        steps = preprocessors.reduce_concat_tokens(steps.filter(lambda e: True))
    expected = listed(preprocessors.split_tokens(steps, max_tokens_per_segment=40))
    made = listed(rows.apart(documents.segments(ds, 40, joined=joined)))
    assert [t for x in made for t in x] == [t for x in expected for t in x if t]
    assert Counter(map(len, made)).most_common(1) == Counter(map(len, expected)).most_common(1)


def test_a_long_document_gives_one_whole_piece_of_it(monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_PIECE", 10)
    with seqio.map_seed_manager(3):
        made = listed(rows.apart(documents.pieces(dataset(*[range(3, 28)] * 120))))
    counts = Counter(map(tuple, made))
    assert set(counts) == {tuple(range(3, 13)), tuple(range(13, 23)), tuple(range(23, 28))}
    assert min(counts.values()) > 20


# Chains -------------------------------------------------------------------------------------------------------------


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
    assert preprocessors.random_spans_helper(inputs, density, mean, 1, 1) == expected


def test_span_corruption_fills_the_lengths_exactly_and_repeats_itself():
    text = dataset(*[np.random.default_rng(i).integers(3, 259, 300) for i in range(20)])

    def run(seed):
        with seqio.map_seed_manager(seed):
            ds = preprocessors.span_corruption(text, {"inputs": 64, "targets": 40}, FEATURES)
            return [(e["inputs"].tolist(), e["targets"].tolist()) for e in ds.as_numpy_iterator()]

    tokens, targets_length = preprocessors.random_spans_helper(64, 0.15, 3.0, 1, 1)
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
        preprocessors.span_corruption(dataset([3]), {"inputs": 512, "targets": 113}, FEATURES)


def test_span_corruption_can_leave_documents_apart_and_pass_features_through():
    ds = tf.data.Dataset.from_tensor_slices({"targets": [[3] * 10, [4] * 10], "id": ["a", "b"]})
    out = preprocessors.span_corruption(
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
        preprocessors.span_corruption(ds, {"inputs": 64, "targets": 40}, FEATURES, passthrough_feature_keys=["id"])


def test_denoise_wants_one_vocabulary():
    other = FEATURES | {"inputs": seqio.Feature(vocabulary=seqio.ByteVocabulary(extra_ids=5))}
    with pytest.raises(ValueError, match="vocabulary"):
        preprocessors.denoise(dataset([3]), other, 0.15, preprocessors.iid_noise_mask, preprocessors.drop_noise_tokens)


def test_denoise_without_targets_fn_keeps_the_text():
    ds = preprocessors.denoise(
        dataset(range(3, 50)), FEATURES, 0.5, preprocessors.iid_noise_mask, preprocessors.drop_noise_tokens
    )
    (example,) = ds.as_numpy_iterator()
    assert example["targets"].tolist() == list(range(3, 50))
    assert 0 < len(example["inputs"]) < 47


def test_denoise_takes_functions_of_one_segment_as_t5_has_them():
    def every_other(length, noise_density, seeds):
        return tf.range(length) % 2 == 0

    def reversed_noise(tokens, noise_mask, vocabulary, seeds):
        return tf.boolean_mask(tokens, noise_mask)[::-1]

    ds = preprocessors.denoise(dataset([3, 4, 5], [6, 7]), FEATURES, 0.5, every_other, reversed_noise)
    assert [(e["inputs"].tolist(), e["targets"].tolist()) for e in ds.as_numpy_iterator()] == [
        ([5, 3], [3, 4, 5]),
        ([6], [6, 7]),
    ]


def test_iid_denoising_aligns_its_sentinels_on_demand():
    lengths = {"inputs": 64, "targets": 64}
    paper = examples(preprocessors.iid_denoising, dataset(*texts()), lengths, noise_density=0.3)
    aligned = examples(preprocessors.iid_denoising, dataset(*texts()), lengths, noise_density=0.3, aligned=True)
    assert [i for i, _ in paper] == [i for i, _ in aligned]
    slips = [(i, t) for (i, t) in paper if i[0] == 358]
    assert slips and all(t[0] < 259 for _, t in slips), "segments that start with noise have no sentinel before it"
    assert all(t[0] == 358 for _, t in aligned)


def test_bert_and_mass_and_deshuffling_want_the_whole_text():
    whole = [t for text in texts() for t in text.tolist()]
    for chain in (preprocessors.bert_style, preprocessors.mass_style, preprocessors.deshuffling):
        made = examples(chain, dataset(*texts()), {"inputs": 64, "targets": 64})
        assert [x for _, t in made for x in t] == whole
        assert all(len(i) == len(t) <= 63 and i != t for i, t in made if len(t) > 20)
        if chain is preprocessors.deshuffling:
            assert all(sorted(i) == sorted(t) for i, t in made)
            assert sum(len(t) < 63 for _, t in made) == 20, "documents are not joined: each has a short last segment"
        else:
            assert 0.1 < np.mean([x == 358 for i, _ in made for x in i]) < 0.2
        if chain is preprocessors.mass_style:
            assert all(x in (y, 358) for i, t in made for x, y in zip(i, t, strict=True))


def test_prefix_lm_cuts_each_segment_in_two():
    made = examples(preprocessors.prefix_lm, dataset(*texts()), {"inputs": 64, "targets": 63})
    assert [x for i, t in made for x in i + t] == [t for text in texts() for t in text.tolist()]
    assert {len(i) + len(t) for i, t in made} == {63, 300 % 63}
    assert min(len(i) for i, _ in made) >= 1 and max(len(t) for _, t in made) <= 62
    with pytest.raises(UserError, match=r"'targets': 63\}"):
        examples(preprocessors.prefix_lm, dataset(*texts()), {"inputs": 64, "targets": 62})


def test_language_models_have_targets_alone():
    lengths = {"targets": 50}
    full = examples(preprocessors.full_lm, dataset([5] * 60, [], [6] * 30, [7] * 9), lengths)
    assert full == [(None, [5] * 50), (None, [5] * 10 + [1] + [6] * 30 + [1] + [7] * 8), (None, [7, 1])]
    segments = examples(preprocessors.lm_segments, dataset([5] * 60, [6] * 30), lengths)
    assert segments == [(None, [5] * 49), (None, [5] * 11 + [6] * 30)]


@pytest.mark.parametrize(
    "chain, kwargs, lengths, message",
    [
        ("iid_denoising", {}, {"inputs": 512, "targets": 100}, "targets': 14[0-9]} or longer|targets': 14[0-9]}"),
        ("bert_style", {}, {"inputs": 512, "targets": 511}, "'targets': 512}"),
        ("deshuffling", {}, {"inputs": 64, "targets": 63}, "'targets': 64}"),
        ("iid_denoising", {}, {"targets": 64}, "lacks inputs"),
        ("span_corruption", {}, {"targets": 64}, "lacks inputs"),
        ("full_lm", {}, {"inputs": 64}, "lacks targets"),
        ("iid_denoising", {"noise_density": 0.5}, {"inputs": 512, "targets": 512}, "100 sentinels"),
        ("span_corruption", {"noise_density": 0.5}, {"inputs": 512, "targets": 512}, "100 sentinels"),
        ("ul2", {"denoisers": ()}, {"inputs": 64, "targets": 64}, "denoisers is empty"),
        ("ul2", {}, {"inputs": 64, "targets": 50}, "NLG.* makes"),
    ],
)
def test_what_an_objective_lacks_is_said_before_it_runs(chain, kwargs, lengths, message):
    with pytest.raises(UserError, match=message):
        getattr(preprocessors, chain)(dataset([3]), lengths, FEATURES, **kwargs)


def test_ul2_restores_every_token_in_its_mode():
    whole = np.concatenate(texts(40)).tolist()
    made = examples(preprocessors.ul2, dataset(*texts(40)), {"inputs": 64, "targets": 64}, seed=2)
    assert made == examples(preprocessors.ul2, dataset(*texts(40)), {"inputs": 64, "targets": 64}, seed=2)
    modes = Counter()
    restored = []
    for inputs, targets in made:
        mode, inputs = BYTES.decode(inputs[:5]), inputs[5:]
        modes[mode] += 1
        assert len(inputs) <= 58 and len(targets) <= 63
        if mode == "[S2S]":
            assert max(inputs + targets) < 259
            restored += inputs + targets
            continue
        spans, sentinel = {}, None
        for t in targets:
            if t >= 259:
                sentinel = t
                spans.setdefault(t, [])
            else:
                spans[sentinel].append(t)
        restored += [x for t in inputs for x in (spans[t] if t >= 259 else [t])]
    assert restored == whole
    # Two, four and one of seven denoisers.
    assert modes["[NLG]"] > modes["[NLU]"] > modes["[S2S]"] > 0 and set(modes) == {d.mode for d in DENOISERS}


def test_unsupervised_wants_an_objective_and_gives_each_step_what_it_takes():
    with pytest.raises(UserError, match="--gin_file=objectives/span_3_15_u_u.gin"):
        preprocessors.unsupervised(dataset([3]))
    steps = [preprocessors.split_tokens_to_targets_length, lambda ds: ds.take(1)]
    made = preprocessors.unsupervised(dataset(range(3, 9)), steps, FEATURES, {"targets": 3})
    assert listed(made) == [[3, 4]]


def test_prefix_lm_rows_are_full():
    lengths = {"inputs": 10, "targets": 10}
    two = tf.data.Dataset.from_tensor_slices({"targets": [list(range(3, 13)), list(range(13, 23)), [9] * 10]})
    with seqio.map_seed_manager(1):
        (row,) = preprocessors.pack_prefix_lm_encoder_decoder(two, lengths).as_numpy_iterator()
        single = list(preprocessors.pack_prefix_lm_decoder_only(two, lengths).as_numpy_iterator())
    for segment, start in ((1, 3), (2, 13)):
        parts = [
            row[f"{side}_{what}"][row[f"{side}_segment_ids"] == segment].tolist()
            for side, what in (("encoder", "input_tokens"), ("decoder", "target_tokens"))
        ]
        assert parts[0] + parts[1] == list(range(start, start + 10)) and all(parts)
        assert row["decoder_input_tokens"][row["decoder_segment_ids"] == segment].tolist() == [0, *parts[1][:-1]]
        for side in ("encoder", "decoder"):
            positions = row[f"{side}_positions"][row[f"{side}_segment_ids"] == segment]
            assert positions.tolist() == list(range(len(positions)))
    for example in single:
        split = 10 - example["decoder_loss_weights"].sum()
        assert example["decoder_causal_attention"].sum() == split + 1
    with pytest.raises(ValueError, match="one even length"):
        preprocessors.pack_prefix_lm_decoder_only(two, {"inputs": 10, "targets": 8})
