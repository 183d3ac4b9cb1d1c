"""Questions without a text, and masked spans."""

import numpy as np
import tensorflow as tf

from t5x_lite.tasks import closed_book_preprocessors


def run(function, example, **arguments):
    dataset = tf.data.Dataset.from_tensors(example)
    return list(function(dataset, **arguments).as_numpy_iterator())


def test_closed_books():
    example = {"question": "Who's 'It'?", "answer": {"value": "'The' É", "aliases": tf.constant(["a", "b"])}}
    (found,) = run(closed_book_preprocessors.trivia_question, example)
    # The pattern takes from the first mark to the last.
    assert found == {"inputs": b"trivia question: whos 'it?", "targets": "the É".encode()}
    (found,) = run(closed_book_preprocessors.trivia_qa_open, example)
    assert found["inputs"] == b"trivia_qa question: Who's 'It'?" and found["targets"] == "'The' É".encode()
    assert np.array_equal(found["answers"], [b"a", b"b"])


def test_another_answer_each_time():
    example = {"inputs": "Who?", "targets": "a", "answers": tf.constant(list("abcdef"))}
    dataset = tf.data.Dataset.from_tensors(example).repeat(60)
    found = list(closed_book_preprocessors.sample_answer(dataset).as_numpy_iterator())
    assert {e["targets"] for e in found} == {letter.encode() for letter in "abcdef"}
    assert all(sorted(e["answers"]) == sorted(found[0]["answers"]) for e in found)
    assert all(e["answers"][0] == e["targets"] and e["inputs"] == b"Who?" for e in found)


def test_each_salient_span_is_asked_for():
    text = "In 1905 É. Zola was read."
    spans = {"start": tf.constant([3, 8]), "limit": tf.constant([7, 16])}  # of bytes: É has two
    found = run(closed_book_preprocessors.mask_salient_spans, {"text": text, "spans": spans})
    assert [(e["inputs"].decode(), e["targets"].decode()) for e in found] == [
        ("nem: In _X_ É. Zola was read.", "1905"),
        ("nem: In 1905 _X_ was read.", "É. Zola"),
    ]
    none = {"start": tf.zeros([0], tf.int32), "limit": tf.zeros([0], tf.int32)}
    assert run(closed_book_preprocessors.mask_salient_spans, {"text": text, "spans": none}) == []
