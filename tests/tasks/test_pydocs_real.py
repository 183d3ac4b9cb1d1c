"""The corpus of the libraries that are installed here."""

import json

import pytest
import seqio
import tensorflow_datasets as tfds

from t5x_lite.tasks.pydocs import builder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("real")
        patch.setenv("T5X_LITE_DATA_DIR", str(directory))
        yield builder.ensure_built()


def test_size_labels_and_leaks(real):
    info = tfds.builder_from_directory(real).info
    assert info.splits["train"].num_examples > 15_000 and info.splits["validation"].num_examples > 700
    counts = info.metadata["libraries"]["train"]
    assert min(counts.values()) >= 100  # fewer could not be learnt
    assert max(counts.values()) < 0.5 * sum(counts.values())
    report = json.loads((real / builder.REPORT_FILE_NAME).read_text())
    assert sum(found["similarity >= 0.7"] for found in report.values()) == 0


def test_vocabulary_is_full_and_loses_nothing(real):
    vocabulary = seqio.get_mixture_or_task("pydocs_library").output_features["inputs"].vocabulary
    assert vocabulary.vocab_size == 4096
    records = builder.open_split("test")
    for record in records.__getitems__(range(300)):
        text = record["text"].decode()
        ids = vocabulary.encode(text)
        assert 2 not in ids and vocabulary.decode(ids) == text
