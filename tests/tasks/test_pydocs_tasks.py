"""The registered tasks, on the small corpus."""

import copy
import itertools
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import seqio

import t5x_lite.tasks
from t5x_lite.tasks import baselines, c4
from t5x_lite.tasks.pydocs import metrics, vocabulary

LENGTHS = {"inputs": 128, "targets": 40}
NAMES = ["pydocs_span_corruption", "pydocs_summarize", "pydocs_library"]


def examples(name, split="train", lengths=LENGTHS, **kwargs):
    task = seqio.get_mixture_or_task(name) if isinstance(name, str) else name
    return list(task.get_dataset(lengths, split, shuffle=False, **kwargs).as_numpy_iterator())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_examples_end_with_eos_and_fit(corpus_dir, name, split):
    found = examples(name, split)
    assert found
    for e in found:
        for key, length in LENGTHS.items():
            assert 1 < len(e[key]) <= length and e[key][-1] == 1 and 0 not in e[key]


def test_summarize_reads_the_body_and_wants_the_first_sentence(corpus_dir):
    task = seqio.get_mixture_or_task("pydocs_summarize")
    records = {r["name"]: r for r in task.source.open_split("train")}
    found = examples("pydocs_summarize")
    assert len(found) == sum(r["summary"] != b"" for r in records.values()) > 50
    for e in found:
        record = records[e["name"]]
        assert e["inputs_pretokenized"] == b"summarize: " + record["body"]
        assert e["targets_pretokenized"] == record["summary"]
        assert record["text"].startswith(record["summary"])


def test_library_reads_the_text_and_wants_the_label(corpus_dir):
    task = seqio.get_mixture_or_task("pydocs_library")
    texts = {r["name"]: r["text"] for r in task.source.open_split("train")}
    for e in examples("pydocs_library"):
        assert e["inputs_pretokenized"] == b"library: " + texts[e["name"]]
        assert e["targets_pretokenized"] == b"invented"


def test_mixture_takes_three_summaries_to_one_library():
    mixture = seqio.get_mixture_or_task("pydocs_library_and_summarize")
    assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == {"pydocs_library": 1.0, "pydocs_summarize": 3.0}


@pytest.mark.parametrize("name", NAMES)
def test_another_vocabulary_can_be_put_in(corpus_dir, name):
    data = seqio.ByteVocabulary(extra_ids=100)
    features = {k: seqio.Feature(vocabulary=data, add_eos=True) for k in ("inputs", "targets")}
    task = seqio.get_mixture_or_task(name).replace(name=f"{name}_bytes", output_features=features)
    for e in examples(task, "validation"):
        assert max(e["inputs"].max(), e["targets"].max()) < 359
        if name == "pydocs_span_corruption":
            assert e["inputs"].max() == e["targets"].max() == 358
        else:
            whole = e["inputs_pretokenized"].decode()
            assert data.decode(e["inputs"].tolist()[:-1]) == whole[: len(e["inputs"]) - 1]


def test_source_shards_without_loss_and_shuffles_by_seed(corpus_dir):
    source = seqio.get_mixture_or_task("pydocs_library").source

    def names(**kwargs):
        return [e["name"] for e in source.get_dataset("train", **kwargs).as_numpy_iterator()]

    whole = names(shuffle=False)
    assert whole == [r["name"] for r in source.open_split("train")]
    assert len(whole) == source.num_input_examples("train")
    shards = [names(shuffle=False, shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    assert sorted(itertools.chain(*shards)) == sorted(whole) and shards[1] == whole[1::3]
    assert names(seed=1) == names(seed=1) != names(seed=2)


# The vocabulary ---------------------------------------------------------------------------------------------------


def test_vocabulary_ids(corpus_dir):
    v = seqio.get_mixture_or_task("pydocs_library").output_features["inputs"].vocabulary
    assert (v.pad_id, v.eos_id, v.unk_id) == (0, 1, 2) and v.tokenizer.bos_id() == -1
    top = v.vocab_size - 1
    assert v.tokenizer.id_to_piece(top) == "▁<extra_id_0>" and v.tokenizer.id_to_piece(top - 99) == "▁<extra_id_99>"
    assert v.extra_ids == 100


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "Title.\n\n    indented\n      more\n",
        "  led by blanks",
        "tab\there",
        "naïve 日本語 ∑ 🙂",
        "a  b ",
        "\n",
    ],
)
def test_text_comes_back_from_its_ids(corpus_dir, text):
    v = vocabulary.PydocsVocabulary()
    ids = v.encode(text)
    assert 2 not in ids
    assert v.decode(ids) == text
    # Both tokenizers agree but for the order of equally likely pieces in a run of one character.
    assert sorted(v.encode_tf(text).numpy().tolist()) == sorted(ids)
    assert v.decode(v.encode_tf(text).numpy().tolist()) == text


def test_a_newline_is_one_piece_of_its_own(corpus_dir):
    v = vocabulary.PydocsVocabulary()
    pieces = [v.tokenizer.id_to_piece(i) for i in v.encode("a\n\nb")]
    assert [p for p in pieces if "\n" in p or p == "<0x0A>"] == ["\n", "\n"]


def test_vocabularies_are_equal_whether_opened_or_not(corpus_dir):
    a, b = vocabulary.PydocsVocabulary(), vocabulary.PydocsVocabulary()
    assert a.encode("x")
    assert a == b == copy.deepcopy(a) == pickle.loads(pickle.dumps(a))


# Metrics ----------------------------------------------------------------------------------------------------------


def test_accuracy():
    assert metrics.accuracy(["a", "b", "c", "d"], ["a", " b\n", "x", ""]) == {"accuracy": 50.0}


def test_rouge_by_hand_and_without_chance():
    found = metrics.rouge(["the cat sat"], ["the cat ran away"])
    assert found["rouge1"] == pytest.approx(100 * 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    np.random.seed(0)
    first = metrics.rouge(["a b", "c d e"], ["a c", "c e d"])
    np.random.seed(1)
    assert first == metrics.rouge(["a b", "c d e"], ["a c", "c e d"])
    assert metrics.rouge(["x y"], ["x y"]) == {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}


def test_tasks_report_their_metrics():
    for name, prediction, expected in (
        ("pydocs_summarize", "one two", {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}),
        ("pydocs_library", "numpy", {"accuracy": 100.0}),
    ):
        task = seqio.get_mixture_or_task(name)
        post = task.postprocess_fn(f" {prediction} ")
        assert task.metric_fns[0]([prediction], [post]) == expected


def test_baselines(corpus_dir):
    found = baselines.baselines("validation")
    assert found["pydocs_library"] == {"majority class": {"accuracy": 100.0}}  # the small corpus has one library
    assert set(found["pydocs_summarize"]) == {"most frequent summary", "first words of the body"}
    assert metrics.library_baselines(["a", "b", "b"], ["a", "b", "c", "b"]) == {"majority class": {"accuracy": 50.0}}
    example = {"summary": "one two three", "body": "one two three four"}
    guesses = metrics.summary_baselines(["z", "one two three", "one two three"], [example], words=3)
    assert {g["rougeL"] for g in guesses.values()} == {100.0}


# Registration -----------------------------------------------------------------------------------------------------


def test_c4_is_registered_under_its_t5_name():
    task = seqio.get_mixture_or_task("c4_v220_span_corruption")
    assert tuple(task.splits) == ("train", "validation")
    assert task.output_features["targets"].vocabulary.sentencepiece_model_file == c4.VOCABULARY_PATH


def test_import_builds_nothing_and_the_bare_name_is_refused(tmp_path):
    """In a process of its own: importing registers all tasks without a data directory or a network."""
    root = pathlib.Path(t5x_lite.tasks.__file__).parent.parent
    code = (
        "import socket; socket.socket.connect = None; import t5x_lite.tasks, seqio\n"
        "assert {'c4_v220_span_corruption', 'pydocs_library'} <= set(seqio.TaskRegistry.names())\n"
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "try: import tasks\n"
        "except ImportError as e: assert 't5x_lite.tasks' in str(e)\n"
        "else: raise SystemExit('bare tasks was imported')\n"
    )
    env = os.environ | {"T5X_LITE_DATA_DIR": str(tmp_path / "none"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "none").exists()
