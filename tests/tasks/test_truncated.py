"""Training splits cut short: which records stay, in what order, and how often they come back."""

import numpy as np
import pytest
import seqio

import gin
from t5x_lite.data import SeqioSource, Stream
from t5x_lite.errors import UserError
from t5x_lite.tasks.pydocs import source


def bound(**parameters):
    gin.clear_config()
    for name, value in parameters.items():
        gin.bind_parameter(f"truncation.{name}", value)


def texts(name, split="train"):
    task = seqio.TaskRegistry.get(name)
    return [record["text"] for record in task.source.get_dataset(split, shuffle=False).as_numpy_iterator()]


def opened(name):
    return [record["text"] for record in seqio.TaskRegistry.get(name).source.open_split("train")]


def test_the_first_records_stay_and_other_splits_are_whole(corpus_dir):
    whole = texts("pydocs_library")
    bound(examples=7)
    assert texts("pydocs_library_truncated") == opened("pydocs_library_truncated") == whole[:7]
    bound(examples=9)
    assert len(opened("pydocs_library_truncated")) == 9, "the binding counts, not what was read before"
    assert texts("pydocs_library_truncated", "validation") == texts("pydocs_library", "validation")


def test_tokens_are_counted_in_the_tasks_vocabulary(corpus_dir):
    whole = texts("pydocs_unsupervised")
    vocabulary = seqio.TaskRegistry.get("pydocs_unsupervised").output_features["targets"].vocabulary
    counts = np.cumsum([len(vocabulary.encode(text.decode())) for text in whole])
    for tokens in (1, int(counts[4]), int(counts[4]) + 1):
        bound(tokens=tokens)
        assert opened("pydocs_unsupervised_truncated") == whole[: np.searchsorted(counts, tokens) + 1]
    bound(tokens=int(counts[4]), examples=2)
    assert opened("pydocs_unsupervised_truncated") == whole[:2], "whatever comes first"


@pytest.mark.slow
def test_a_repeated_text_is_corrupted_anew(corpus_dir):
    """All that a run sees are the kept records, epoch after epoch, with other masks each time."""
    gin.parse_config("""
        import t5x_lite.tasks.preprocessors
        preprocessors.unsupervised.preprocessors = [@preprocessors.span_corruption]
        truncation.examples = 2
    """)
    config = SeqioSource("pydocs_unsupervised_truncated", {"inputs": 48, "targets": 16}, num_streams=1, block_records=2)
    blocks = config.open()
    rows = [tuple(row["encoder_input_tokens"]) for row in Stream(blocks, 0).take(60)]
    seen = set(np.concatenate(rows)) - {0, 1}
    ids = blocks.vocabulary.encode(b" ".join(opened("pydocs_unsupervised_truncated")).decode())
    assert {token for token in seen if token < min(t for t in seen if t > max(ids))} <= set(ids)
    assert len(set(rows)) > 0.9 * len(rows)


def test_data_that_are_not_here_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    bound(examples=1)
    with pytest.raises(UserError, match="c4_v020_unsupervised reads the data set c4/en"):
        opened("c4_v020_unsupervised_truncated")


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({}, "needs truncation.tokens or truncation.examples"),
        ({"examples": 0}, "at least 1, not 0"),
        ({"tokens": 2.5}, "at least 1, not 2.5"),
    ],
)
def test_a_cut_that_makes_no_sense_is_refused(corpus_dir, parameters, message):
    bound(**parameters)
    with pytest.raises(UserError, match=message):
        opened("pydocs_library_truncated")


def test_the_corpus_is_held_once_for_both_readers(corpus_dir):
    whole = source.PydocsSource()
    assert whole.columns("train") is whole.columns("train")
    assert list(whole.columns("train")["text"]) == [record["text"] for record in whole.open_split("train")]
