"""Questions and answers at their edges."""

import seqio
import tensorflow as tf

from t5x_lite.tasks import question_preprocessors


def run(function, example, **arguments):
    dataset = tf.data.Dataset.from_tensors(example)
    return list(function(dataset, **arguments).as_numpy_iterator())


def test_squad_knows_ascii_alone():
    (found,) = run(
        question_preprocessors.squad,
        {
            "id": "i",
            "question": "Why  so?",
            "context": "a\u00a0b\t c\n“d”, e'f-g_h",
            "answers": {"text": tf.constant(["$3.5 million", "é!"])},
        },
    )
    context = "a\u00a0b c “d” , e ' f - g _ h"
    assert found["context"].decode() == context
    assert found["inputs"].decode() == f"question: Why so ? context: {context}"
    assert [a.decode() for a in found["answers"]] == [" $ 3 . 5 million", "é ! "]
    assert found["targets"] == b" $ 3 . 5 million"
    assert found["question"] == b"Why so ? " and found["id"] == b"i"


def test_squad_spans():
    cases = [
        ("the cat sat down", "cat sat", "start: 1 end: 2"),
        ("the cat sat down", "sat down", None),  # at the very end: the search stops before it
        ("a cat, a cat here", "cat", "start: 1 end: 1"),  # the first of them
        ("a cat here", "dog", None),
        ("cat, then on", "then", "start: 3 end: 3"),  # "cat , then on": the comma leaves empty words
        ("a", "a much longer answer", None),
    ]
    contexts, answers, spans = (list(column) for column in zip(*cases))
    dataset = tf.data.Dataset.from_tensor_slices((contexts, [[answer] for answer in answers])).map(
        lambda context, texts: {"id": "i", "question": "Q", "context": context, "answers": {"text": texts}}
    )
    found = list(question_preprocessors.squad_span_space_tokenized(dataset).as_numpy_iterator())
    assert [e["targets"].decode() for e in found] == [span for span in spans if span]


def trivia(aliases, pages, results=()):
    example = {
        "question": "Q?",
        "answer": {"normalized_aliases": tf.constant(aliases, tf.string)},
        "entity_pages": {"wiki_context": tf.constant(pages, tf.string)},
        "search_results": {"search_context": tf.constant(results, tf.string)},
    }
    return [(e["inputs"].decode(), e["targets"].decode()) for e in run(question_preprocessors.trivia_qa, example)]


def test_trivia_qa_pairs_contexts_with_the_aliases_found_in_them():
    assert trivia(["art", "b c"], ["art: b  c", "none"], ["A PARTY."]) == [
        ("question: Q ? context: art : b c", "art"),
        ("question: Q ? context: art : b c", "b c"),
        ("question: Q ? context: A PARTY . ", "art"),
    ]


def test_trivia_qa_lower_case_is_ascii_and_aliases_are_patterns():
    assert trivia(["café"], ["CAFÉ", "CAFé"]) == [("question: Q ? context: CAFé", "café")]
    assert trivia(["x.y"], ["x a y", "x . y", "x ay"]) == [
        ("question: Q ? context: x a y", "x . y"),
        ("question: Q ? context: x . y", "x . y"),
    ]
    assert trivia([], ["a"]) == [] and trivia(["a"], []) == []


def truncate(inputs, targets, length):
    """The different inputs that come of 40 examples that are all the same."""
    example = {"inputs": tf.constant(inputs, tf.int32), "targets": tf.constant(targets, tf.int32)}
    with seqio.utils.map_seed_manager(1):
        dataset = question_preprocessors.trivia_qa_truncate_inputs(
            tf.data.Dataset.from_tensors(example).repeat(40),
            output_features=None,
            sequence_length={"inputs": length, "targets": 9},
        )
    found = list(dataset.as_numpy_iterator())
    assert all(e["targets"].tolist() == targets for e in found)
    return {tuple(e["inputs"].tolist()) for e in found}


def test_trivia_qa_cuts_a_window_around_the_answer():
    tokens = [0, 3, 5, 7, 9, 11, 13]
    assert truncate(tokens, [5, 7], 4) == {(0, 3, 5, 7), (3, 5, 7, 9), (5, 7, 9, 11)}  # all that there are
    assert truncate(tokens, [11, 13], 3) == {(9, 11, 13)}
    assert truncate(tokens, [8], 7) == {tuple(tokens)}  # short enough: not looked into
    assert truncate(tokens, [7, 5], 4) == set()  # not there
    assert truncate(tokens, [3, 5, 7, 9, 11], 4) == set()  # no room
