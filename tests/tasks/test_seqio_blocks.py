"""seqio tasks as blocks: exact shares, every record once an epoch, other masks in other blocks, byte-equal again."""

import dataclasses

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x_lite import data, seqio_blocks
from t5x_lite.errors import UserError
from t5x_lite.tasks.in_memory import InMemorySource

LENGTHS = {"inputs": 64, "targets": 20}


def source(name="pydocs_span_corruption", **kwargs):
    return data.SeqioSource(name, LENGTHS, num_streams=2, block_records=8, **kwargs)


@pytest.fixture(autouse=True)
def corpus(corpus_dir):
    return corpus_dir


def rows(blocks, stream, k):
    return [{name: value.tolist() for name, value in row.items()} for row in blocks.block(stream, k)]


def test_a_block_is_a_function_of_stream_and_number():
    assert rows(source().open(), 0, 1) == rows(source().open(), 0, 1) != []
    blocks = source().open()
    assert rows(blocks, 0, 1) != rows(blocks, 1, 1) != rows(blocks, 0, 2)
    assert rows(source(seed=1).open(), 0, 1) != rows(blocks, 0, 1)


def test_masks_differ_between_epochs():
    """The same text, seen again, is corrupted elsewhere: lengths of the spans' sequence differ."""
    one_epoch = dataclasses.replace(source(shuffle_buffer=0, packing=False), num_streams=1, block_records=96)
    blocks = one_epoch.open()
    first, second = ({tuple(r["decoder_target_tokens"]) for r in rows(blocks, 0, k)} for k in range(2))
    assert len(first & second) < 0.2 * len(first)


def chosen(blocks, monkeypatch, steps):
    """Indices of the records that the streams read, per task, in the order of an endless sequence."""
    from t5x_lite import seqio_blocks

    read = []
    monkeypatch.setattr(seqio_blocks.seqio_sources, "read", lambda records, indices: read.append(indices.tolist()))
    monkeypatch.setattr(blocks, "_examples", lambda task, records, seed: seqio_blocks.tf.data.Dataset.range(1))
    for k in range(steps):
        for stream in range(2):
            blocks._records_block(stream, k, 0)
    return read


def test_every_record_comes_once_an_epoch_and_in_another_order(monkeypatch):
    blocks = source().open()
    size = len(blocks._records[0])
    read = chosen(blocks, monkeypatch, -(-size // 16) * 4)
    # Streams take turns: of two parts of eight records the first has the even places.
    pairs = [pair for even, odd in zip(read[0::2], read[1::2], strict=True) for pair in zip(even, odd, strict=True)]
    order = [i for pair in pairs for i in pair]
    epochs = [order[n * size : (n + 1) * size] for n in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_shares_of_a_mixture_are_exact(monkeypatch):
    blocks = source("pydocs_library_and_summarize").open()
    blocks._shares = np.array([0.25, 0.75])
    read = chosen(blocks, monkeypatch, 5)
    library, summarize = sum(map(len, read[0::2])), sum(map(len, read[1::2]))
    assert (library, summarize) == (5 * 2 * 2, 5 * 2 * 6)


def test_the_tasks_of_a_mixture_are_mixed_to_the_end_of_a_block(monkeypatch):
    """Also where one of them filters most of its records out."""
    from t5x_lite import seqio_blocks

    blocks = dataclasses.replace(source("pydocs_library_and_summarize", packing=False), block_records=400).open()
    kept = {"pydocs_library": 100, "pydocs_summarize": 60}
    monkeypatch.setattr(seqio_blocks.seqio_sources, "read", lambda records, indices: None)
    seeds = set()

    def examples(task, records, seed):
        seeds.add(seed)
        return seqio_blocks.tf.data.Dataset.from_tensors(list(kept).index(task.name)).repeat(kept[task.name])

    monkeypatch.setattr(blocks, "_examples", examples)
    order = np.array(list(blocks._records_block(0, 0, seed=7).as_numpy_iterator()))
    assert np.bincount(order).tolist() == list(kept.values())
    assert len(seeds) == 2, "and neither has the other's random numbers"
    for part in np.split(order, 4):
        assert 5 <= part.sum() <= 25, "of 40 examples 15 are summaries, here as everywhere"
    again = list(blocks._records_block(0, 0, seed=7).as_numpy_iterator())
    assert again == order.tolist() != list(blocks._records_block(0, 0, seed=8).as_numpy_iterator())


def test_packed_rows_hold_several_examples_and_no_more_than_fit():
    wide = dataclasses.replace(source("pydocs_library_and_summarize"), feature_lengths={"inputs": 4000, "targets": 400})
    packed = rows(wide.open(), 0, 0)
    assert max(max(row["decoder_segment_ids"]) for row in packed) > 1
    assert all(len(row["encoder_input_tokens"]) == 4000 and len(row["decoder_target_tokens"]) == 400 for row in packed)


@pytest.mark.parametrize("architecture", ["causal_lm", "prefix_lm"])
def test_rows_of_a_language_model_are_inputs_and_targets_in_one(architecture):
    """What seqio's converter makes of an example, our model makes of the encoder-decoder's row."""
    from t5x_lite.models import language_model

    apart = source(packing=False, shuffle_buffer=0).open()
    joined = source(packing=False, shuffle_buffer=0).open(architecture)
    pairs = list(zip(apart.block(0, 0), joined.block(0, 0), strict=True))
    assert pairs
    for apart_row, joined_row in pairs:
        ours = language_model.concatenated({name: value[None] for name, value in apart_row.items()})
        real = joined_row["decoder_target_tokens"] > 0
        assert set(ours) == set(joined_row)
        for name, value in ours.items():
            np.testing.assert_array_equal(
                np.where(real, value[0], 0), np.where(real, joined_row[name], 0), err_msg=name
            )


def test_a_language_model_may_learn_from_its_inputs_too():
    for only_targets in (True, False):
        blocks = source(packing=False, loss_on_targets_only=only_targets).open("prefix_lm")
        row = next(blocks.block(0, 0))
        assert (row["decoder_loss_weights"].sum() == (row["decoder_target_tokens"] > 0).sum()) == (not only_targets)


@pytest.mark.slow
def test_a_source_that_cannot_seek_still_gives_the_same_rows(monkeypatch):
    from t5x_lite import seqio_blocks

    monkeypatch.setattr(seqio_blocks, "open_records", lambda task, split: None)
    for name in ("pydocs_span_corruption", "pydocs_library_and_summarize"):
        taken = []
        for _ in range(2):
            stream = data.Stream(source(name).open(), 1)
            taken.append([row["encoder_input_tokens"].tolist() for row in stream.take(40)])
        assert taken[0] == taken[1]
        if name == "pydocs_span_corruption":  # a mixture of such tasks is one endless block
            assert rows(source(name).open(), 1, 0) != rows(source(name).open(), 1, 1)
        later = data.Stream(source(name).open(), 1, position=stream_position(source(name), 25))
        assert [row["encoder_input_tokens"].tolist() for row in later.take(15)] == taken[0][25:]


def stream_position(a_source, n):
    stream = data.Stream(a_source.open(), 1)
    stream.take(n)
    return stream.position


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mixture_or_task_name": "pydocs_sumarize"}, "did you mean pydocs_summarize"),
        ({"split": "dev"}, "no split 'dev'; it has train, validation, test"),
        ({"feature_lengths": {"inputs": 64}}, "TASK_FEATURE_LENGTHS lacks targets"),
        ({"task_modules": ("no_such_module",)}, "'no_such_module', which cannot be imported"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(source(), **change).open()


def test_pipelines_are_in_order_and_have_no_tuning_thread_to_wait_for():
    """An iterator that is done waits for the thread, up to 15 s (seen by chance only, so not tested by time)."""
    options = seqio_blocks.steady(tf.data.Dataset.range(3)).options()
    assert options.deterministic is True
    assert options.autotune.enabled is False


class Numbers(InMemorySource):
    """Records of one number each."""

    def __init__(self, count):
        super().__init__(splits=("train",))
        self._count = count

    def open_split(self, split):
        return [{"number": i} for i in range(self._count)]


@pytest.fixture
def counting_mixture():
    """Two tasks at equal rates, of which one drops three of four records and the other makes three examples of each."""
    features = {
        "inputs": seqio.Feature(seqio.ByteVocabulary(), add_eos=False, required=False),
        "targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False),
    }
    example = {"inputs": lambda n: tf.fill([2], n), "targets": lambda n: tf.fill([2], n)}

    def add(name, value, change):
        seqio.TaskRegistry.add(
            name,
            source=Numbers(100),
            output_features=features,
            preprocessors=[
                change,
                lambda dataset: dataset.map(lambda _: {key: make(value) for key, make in example.items()}),
            ],
        )

    add("counted_dropped", 5, lambda dataset: dataset.filter(lambda record: record["number"] % 4 == 0))
    add(
        "counted_tripled",
        6,
        lambda dataset: dataset.flat_map(lambda record: tf.data.Dataset.from_tensors(record).repeat(3)),
    )
    seqio.MixtureRegistry.add("counted", [("counted_dropped", 1.0), ("counted_tripled", 1.0)])
    yield "counted"
    seqio.MixtureRegistry.remove("counted")
    for name in ("counted_dropped", "counted_tripled"):
        seqio.TaskRegistry.remove(name)


def test_rates_are_of_examples_and_not_of_the_records_they_are_made_of(counting_mixture):
    blocks = source(counting_mixture, packing=False).open()
    # Over whole epochs of both: 13 records of the first to every one of the second.
    drawn = [
        row["decoder_target_tokens"][0] for k in range(26) for stream in range(2) for row in blocks.block(stream, k)
    ]
    counts = dict(zip(*np.unique(drawn, return_counts=True), strict=True))
    assert counts[5] / len(drawn) == pytest.approx(0.5, abs=0.04)
    records = [len(blocks._chosen(j, 0, 0)) for j in range(2)]
    assert records == [7, 0], "12/13 of eight records, and 1/13"


def test_a_task_that_drops_everything_is_named(counting_mixture):
    seqio.TaskRegistry.get("counted_dropped").preprocessors.insert(0, lambda dataset: dataset.filter(lambda _: False))
    with pytest.raises(UserError, match="counted_dropped makes no example of 100 of its 100 records"):
        source(counting_mixture).open()
