"""GLUE's and SuperGLUE's formats at their edges; each data set's own example is in test_supervised_tasks.py."""

import numpy as np
import tensorflow as tf

from t5x_lite.tasks import glue_preprocessors


def run(function, *examples, **arguments):
    """What the preprocessor makes of raw examples of one shape."""
    dataset = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *v: tf.stack(v), *examples))
    return list(function(dataset, **arguments).as_numpy_iterator())


def test_stsb_rounds_halves_to_even_in_float32():
    labels = {
        0.0: "0.0",
        0.5: "0.4",
        1.5: "1.6",
        2.5: "2.4",
        3.5: "3.6",
        3.3: "3.2",
        3.25: "3.2",
        2.57: "2.6",
        5.0: "5.0",
        -1.0: "-1.0",
    }
    examples = [{"sentence1": "a", "sentence2": "b", "label": np.float32(x), "idx": 0} for x in labels]
    assert [e["targets"].decode() for e in run(glue_preprocessors.stsb, *examples)] == list(labels.values())


def test_keys_are_sorted_unless_listed():
    example = {"b": "2", "a": "1", "label": np.int64(0), "idx": 9}
    (found,) = run(glue_preprocessors.glue, example, benchmark_name="x", label_names=("no", "yes"))
    assert found == {"inputs": b"x a: 1 b: 2", "targets": b"no", "idx": 9}
    (found,) = run(
        glue_preprocessors.glue,
        example,
        benchmark_name="x",
        label_names=("no", "yes"),
        feature_names=("b",),
        id_key=None,
    )
    assert found == {"inputs": b"x b: 2", "targets": b"no"}


def test_labels():
    examples = [{"premise": "p", "label": np.int64(label), "idx": 0} for label in (-1, 0, 1, 2)]
    found = run(
        glue_preprocessors.glue,
        *examples,
        benchmark_name="mnli",
        label_names=("entailment", "neutral", "contradiction"),
    )
    assert [e["targets"] for e in found] == [b"<unk>", b"entailment", b"neutral", b"contradiction"]


def test_multirc_keeps_the_numbers_that_group_its_answers():
    example = {
        "question": "Q",
        "answer": "<B>x</B></b><br/>",
        "paragraph": "<br><br>y",
        "label": np.int64(1),
        "idx": {"paragraph": 1, "question": 2, "answer": 3},
    }
    (found,) = run(
        glue_preprocessors.glue,
        example,
        benchmark_name="multirc",
        label_names=("False", "True"),
        feature_names=("question", "answer", "paragraph"),
    )
    assert found == {
        "inputs": b"multirc question: Q answer: <B>x</B><br/> paragraph:   y",
        "targets": b"True",
        "idx/paragraph": 1,
        "idx/question": 2,
        "idx/answer": 3,
    }


def record(answers, *passages):
    examples = [
        {
            "passage": passage,
            "query": "@placeholder",
            "entities": tf.constant(["A", "B"]),
            "answers": tf.constant(answers, tf.string),
            "idx": {"passage": 5, "query": 6},
        }
        for passage in passages
    ]
    return run(glue_preprocessors.record, *examples)


def test_record_has_an_example_for_each_answer():
    found = record(["A", "B"], "P.")
    assert [e["targets"] for e in found] == [b"A", b"B"]
    for e in found:
        assert e["inputs"] == b"record query: @placeholder entities: A, B passage: P."
        assert e["answers"].tolist() == [b"A", b"B"] and (e["idx/passage"], e["idx/query"]) == (5, 6)
    (found,) = record([], "P.")
    assert found["targets"] == b"<unk>" and found["answers"].tolist() == []


def test_record_highlights_become_sentences():
    found = record(["A"], *(f"Ends{mark}\n@highlight\nNext" for mark in ".?!\"',:"), "One\n@highlight\nLast @highlight")
    assert [e["inputs"].decode().split("passage: ")[1] for e in found] == [
        "Ends. Next",
        "Ends? Next",
        "Ends! Next",
        'Ends" Next',
        "Ends' Next",
        "Ends,. Next",
        "Ends:. Next",
        "One. Last @highlight",
    ]
