"""Tasks on real, tiny data sets of tensorflow-datasets, and what is said where there are none."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

import t5x_lite.tasks  # noqa: F401  (registers)
from t5x_lite import data, evaluation, seqio_blocks, seqio_evaluation, seqio_sources, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.tasks.tfds_source import TfdsSource

BYTES = vocabularies.ByteVocabulary()
LENGTHS = {"inputs": 96, "targets": 24}
SQUAD = tfds.features.FeaturesDict(
    {
        "id": tf.string,
        "title": tfds.features.Text(),
        "context": tfds.features.Text(),
        "question": tfds.features.Text(),
        "answers": tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32}),
    }
)
NLI = tfds.features.FeaturesDict(
    {
        "premise": tfds.features.Text(),
        "hypothesis": tfds.features.Text(),
        "idx": np.int32,
        "label": tfds.features.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    }
)


def squad_records(start, count):
    """Records whose number of answers, 1 to 3, differs."""
    return [
        {
            "id": f"q{i}",
            "title": "",
            "context": f"Item {i} is blue.",
            "question": f"What is item {i}?",
            "answers": {"text": ["blue", "is blue", f"item {i}"][: i % 3 + 1], "answer_start": [0] * (i % 3 + 1)},
        }
        for i in range(start, start + count)
    ]


def nli_records(count):
    return [{"premise": f"P{i}.", "hypothesis": f"H{i}.", "idx": i, "label": i % 3} for i in range(count)]


def store(folder, name, config, version, features, file_format, **splits):
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        version=version,
        config=config,
        features=features,
        data_dir=folder,
        file_format=file_format,
        disable_shuffling=file_format == "array_record",  # TFRecords in a fixed order cannot be read shuffled
        split_datasets={split: list(enumerate(records)) for split, records in splits.items()},
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder of prepared data: SQuAD and MNLI, the latter in the version that T5 used."""
    folder = tmp_path_factory.mktemp("tfds")
    store(
        folder,
        "squad",
        "v1.1",
        "3.0.0",
        SQUAD,
        "array_record",
        train=squad_records(0, 12),
        validation=squad_records(12, 5),
    )
    for config, splits in (
        ("mnli", {"train": nli_records(9), "validation_matched": nli_records(2)}),
        ("mnli_matched", {"validation": nli_records(4), "test": nli_records(2)}),
        ("mnli_mismatched", {"validation": nli_records(3), "test": nli_records(2)}),
    ):
        store(folder, "glue", config, "1.0.0", NLI, "tfrecord", **splits)
    return folder


@pytest.fixture
def data_dir(monkeypatch):
    """A way to say where tensorflow-datasets looks."""
    builders = seqio.utils.LazyTfdsLoader._MEMOIZED_BUILDERS
    kept = dict(builders)

    def look_in(folder):
        builders.clear()
        monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))

    yield look_in
    builders.clear()
    builders.update(kept)


def blocks(name, **arguments):
    return data.SeqioSource(name, LENGTHS, num_streams=1, packing=False, vocabulary=BYTES, **arguments).open()


def texts(rows, feature="encoder_input_tokens"):
    return [BYTES.decode(row[feature].tolist()) for row in rows]


def test_columns_of_nested_and_ragged_records():
    records = [
        {"a": 1, "text": b"x\0", "deep": {"list": np.array([1, 2]), "texts": np.array([b"p"], object)}},
        {"a": 2, "text": b"long", "deep": {"list": np.array([3, 4]), "texts": np.array([], object)}},
        {"a": 3, "text": b"", "deep": {"list": np.array([5, 6]), "texts": np.array([b"q", b"r"], object)}},
    ]
    dataset = tf.data.Dataset.from_tensor_slices(seqio_sources.columns(records))
    found = list(dataset.map(lambda x: x).as_numpy_iterator())
    assert [(e["a"], e["text"], e["deep"]["list"].tolist(), e["deep"]["texts"].tolist()) for e in found] == [
        (1, b"x\0", [1, 2], [b"p"]),
        (2, b"long", [3, 4], []),
        (3, b"", [5, 6], [b"q", b"r"]),
    ]


def test_blocks_of_a_task_with_nested_features(stored, data_dir):
    data_dir(stored)
    found = blocks("squad_v010_allanswers", block_records=12)
    assert found.seekable
    rows = list(found.block(0, 0))
    assert sorted(texts(rows)) == sorted(
        f"question: What is item {i} ? context: Item {i} is blue . " for i in range(12)
    )
    assert set(texts(rows, "decoder_target_tokens")) == {"blue"}


def test_blocks_keep_to_a_split_that_is_a_part(stored, data_dir):
    data_dir(stored)
    base = seqio.get_mixture_or_task("squad_v010_allanswers")
    source = TfdsSource("squad/v1.1:3.0.0", splits={"train": "train[:5]", "validation": "train[5:]"})
    assert [e["id"] for e in source.get_dataset("validation", shuffle=False).as_numpy_iterator()] == [
        f"q{i}".encode() for i in range(5, 12)
    ]
    task = base.replace(name="part_of_squad", source=source)
    seqio.TaskRegistry.add_provider(task.name, task)
    try:
        rows = list(blocks("part_of_squad", block_records=5).block(0, 0))
        assert sorted(text.split()[4] for text in texts(rows)) == ["0", "1", "2", "3", "4"]
    finally:
        seqio.TaskRegistry.remove("part_of_squad")


def test_array_records_are_shuffled_and_sharded(stored, data_dir):
    data_dir(stored)
    source = seqio.get_mixture_or_task("squad_v010_allanswers").source

    def read(**arguments):
        return [e["id"].decode() for e in source.get_dataset("train", **arguments).as_numpy_iterator()]

    everything = [f"q{i}" for i in range(12)]
    assert read(shuffle=False) == everything
    assert read(shuffle=False, shard_info=seqio.ShardInfo(1, 5)) == ["q1", "q6", "q11"]
    first = read(seed=1)
    assert sorted(first) == sorted(everything) and first != everything
    assert read(seed=1) == first != read(seed=2)


def test_a_mixture_trains_on_the_tasks_that_have_the_split(stored, data_dir):
    data_dir(stored)
    found = blocks("glue_mnli_and_dev_v002")
    assert [seqio_blocks.plain_name(task.name) for task in found._tasks] == ["glue_mnli_v002"]
    rows = found.block(0, 0)
    seen = set(texts(next(rows) for _ in range(40)))
    assert seen == {f"mnli hypothesis: H{i}. premise: P{i}." for i in range(9)}
    with pytest.raises(UserError, match="has no split 'dev'; it has validation, test, train, validation_m"):
        blocks("glue_mnli_and_dev_v002", split="dev")


def test_a_mixture_is_evaluated_on_the_tasks_that_have_the_split(stored, data_dir):
    data_dir(stored)
    config = evaluation.Evaluation("glue_mnli_and_dev_v002", LENGTHS, vocabulary=BYTES)
    found = seqio_evaluation.EvaluationData(config)
    assert {name: len(rows["decoder_target_tokens"]) for name, rows in found.examples.items()} == {
        "glue_mnli_matched_v002": 4,
        "glue_mnli_mismatched_v002": 3,
    }
    # Always "entailment": right for examples 0 and 3 of four, and 0 of three.
    ids = np.array(BYTES.encode("entailment"))
    result = found.decoded_metrics(lambda tokens: np.tile(ids, (len(tokens), 1)))
    assert {name: scores for name, (scores, _) in result.items()} == {
        "glue_mnli_matched_v002": {"accuracy": 50.0},
        "glue_mnli_mismatched_v002": {"accuracy": pytest.approx(100 / 3)},
    }


def test_squad_is_evaluated_over_all_answers(stored, data_dir):
    data_dir(stored)
    found = seqio_evaluation.EvaluationData(evaluation.Evaluation("squad_v010_allanswers", LENGTHS, vocabulary=BYTES))
    # "is blue" is an answer of items 13, 14 and 16 of 12 to 16; to the other two it has one word more than "blue".
    ids = np.array(BYTES.encode("Is blue!"))
    ((scores, samples),) = found.decoded_metrics(lambda tokens: np.tile(ids, (len(tokens), 1))).values()
    assert scores == {"em": pytest.approx(60.0), "f1": pytest.approx(100 * (3 + 2 * 2 / 3) / 5)}
    assert samples[0]["prediction"] == "Is blue!" and samples[0]["targets"] == "blue"


@pytest.mark.parametrize(
    "name, says",
    [
        ("glue_cola_v002", "glue_cola_v002 reads the data set glue/cola:2.0.0, which is not in "),
        ("super_glue_v102_proportional", "dpr_v001_simple reads the data set definite_pronoun_resolution:1.1.0, "),
        ("all_supervised_proportional", "cnn_dailymail_v002 reads the data set cnn_dailymail:3.4.0, which is not in "),
    ],
)
def test_data_that_are_not_here(name, says, tmp_path, data_dir):
    data_dir(tmp_path)
    for opened in (
        lambda: blocks(name),
        lambda: seqio_evaluation.EvaluationData(evaluation.Evaluation(name, LENGTHS, split="train", vocabulary=BYTES)),
    ):
        with pytest.raises(UserError) as error:
            opened()
        message = str(error.value)
        assert message.startswith(says) and "\n" not in message
        assert f"which is not in {tmp_path}" in message and "; set TFDS_DATA_DIR" in message
        assert message.endswith('.download_and_prepare()"')
        assert ("(nor are super_glue/boolq:1.0.2, super_glue/cb:1.0.2, " in message) == name.startswith("super_glue")
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_a_data_set_that_nobody_knows(tmp_path, data_dir):
    data_dir(tmp_path)
    base = seqio.get_mixture_or_task("glue_cola_v002")
    task = base.replace(name="unknown_data", source=seqio.TfdsDataSource("no_such_data_set:1.0.0"))
    says = "unknown_data reads the data set no_such_data_set:1.0.0, which is not in .* where it must lie ready"
    with pytest.raises(UserError, match=says):
        seqio_sources.tasks_with_split(task, "train")
