"""WSC, DPR and WNLI at their edges."""

import numpy as np
import pytest
import tensorflow as tf

from t5x_lite.tasks import pronoun_preprocessors


def run(function, example, **arguments):
    dataset = tf.data.Dataset.from_tensors(example)
    return list(function(dataset, **arguments).as_numpy_iterator())


def wsc(text, pronoun, index, label=1, **arguments):
    example = {
        "text": text,
        "span1_text": "Malcolm",
        "span1_index": 0,
        "span2_text": pronoun,
        "span2_index": index,
        "label": np.int64(label),
        "idx": 4,
    }
    return run(pronoun_preprocessors.wsc_simple, example, **arguments)


def test_wsc_simple():
    (found,) = wsc("Malcolm said that he won .", "he", 3)
    assert found == {"inputs": b"wsc: Malcolm said that *he* won .", "targets": b"Malcolm", "label": 1, "idx": 4}
    # Every X that stands alone takes the pronoun, and a pronoun at the end a blank behind it.
    (found,) = wsc("Malcolm X said that he won", "he", 4)
    assert found["inputs"] == b"wsc: Malcolm *he* said that *he* won"
    (found,) = wsc("Malcolm thought of him", "him", 3, label=0)
    assert found["inputs"] == b"wsc: Malcolm thought of *him* " and found["label"] == 0


@pytest.mark.parametrize("label, kept", [(0, 0), (1, 1), (-1, 1)])
def test_wsc_simple_on_right_candidates_alone(label, kept):
    assert len(wsc("Malcolm said that he won .", "he", 3, label, correct_referent_only=True)) == kept


@pytest.mark.parametrize("index", [0, 2, 6])
def test_wsc_simple_refuses_an_index_that_is_not_the_pronouns(index):
    with pytest.raises(tf.errors.InvalidArgumentError):
        wsc("he said that he won .", "he", index)  # nor the first word, in which T5 sees no pronoun


def test_wsc_simple_mends_two_texts():
    pony = (
        "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
        '"Good for him," he said. '
    )
    (found,) = wsc(pony, "him", 24)
    assert found["inputs"].decode() == (
        "wsc: The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite "
        'loud. "Good for *him* ," he said.'
    )
    pebble = (
        "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an "
        "iron safe . Some day they might want to use it , but really for now, what more could they wish for?"
    )
    (found,) = wsc(pebble, "it", 28)
    assert found["inputs"].decode() == (
        "wsc: When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an "
        "iron safe . Some day they might want to use *it* , but really for now, what more could they wish for?"
    )


@pytest.mark.parametrize(
    "first, second, expected",
    [
        (("test", 3), ("This", 0), "# This # is a * test * sentence ."),
        (("This", 0), ("test", 3), "* This * is a # test # sentence ."),
    ],
)
def test_wsc_with_both_spans_marked(first, second, expected):
    example = {
        "text": "This is a test sentence .",
        "span1_text": first[0],
        "span1_index": first[1],
        "span2_text": second[0],
        "span2_index": second[1],
        "label": np.int64(0),
        "idx": 0,
    }
    (found,) = run(pronoun_preprocessors.wsc, example)
    assert found == {"inputs": f"wsc text: {expected}".encode(), "targets": b"False", "idx": 0}


def test_dpr():
    sentences = {
        "Bob told him, but he left, he said.": "Bob told him, but *he* left, he said.",  # the first, and only it
        "The heat got to him and he.": "The heat got to him and *he*.",
        "Was it he? Yes, he said so.": "Was it he? Yes, *he* said so.",  # "?" does not end the word
        "he left.": "he left.",  # nothing before it
    }
    examples = tf.data.Dataset.from_tensor_slices(list(sentences)).map(
        lambda s: {"sentence": s, "pronoun": "he", "candidates": ["Bob", "Tom"], "label": tf.constant(0, tf.int64)}
    )
    found = pronoun_preprocessors.definite_pronoun_resolution_simple(examples)
    assert list(found.as_numpy_iterator()) == [
        {"inputs": f"wsc: {expected}".encode(), "targets": b"Bob"} for expected in sentences.values()
    ]


@pytest.mark.parametrize(
    "premise, hypothesis, inputs, targets",
    [
        (
            "The fish ate the worm. It was tasty.",
            "The worm was tasty.",
            "The fish ate the worm. *It* was tasty.",
            "The worm",
        ),
        # The capitals of the hypothesis, and no genitive.
        ("Ann asked Bob for his hat.", "Ann asked Bob for Bob's hat.", "Ann asked Bob for *his* hat.", "Bob"),
        (
            "The dogs barked at James, and they liked his voice.",
            "They liked James' voice.",
            "The dogs barked at James, and they liked *his* voice.",
            "James",
        ),
        # The pronoun with most in common around it, its mark set apart.
        (
            "He knew the man, but nobody else liked him.",
            "Nobody else liked the man.",
            "He knew the man, but nobody else liked *him* .",
            "the man",
        ),
        # What comes before the last article is no part of the noun.
        (
            "The jar is by the door, so it is safe.",
            "Clearly the jar is safe.",
            "The jar is by the door, so *it* is safe.",
            "the jar",
        ),
    ],
)
def test_wnli_simple(premise, hypothesis, inputs, targets):
    example = {"sentence1": premise, "sentence2": hypothesis, "label": np.int64(-1), "idx": 7}
    assert run(pronoun_preprocessors.wnli_simple, example) == [
        {
            "inputs": f"wsc: {inputs}".encode(),
            "targets": targets.encode(),
            "premise": premise.encode(),
            "hypothesis": hypothesis.encode(),
            "label": -1,
            "idx": 7,
        }
    ]


def test_wnli_simple_refuses_a_premise_without_pronoun():
    with pytest.raises(tf.errors.InvalidArgumentError, match="no pronoun"):
        run(pronoun_preprocessors.wnli_simple, {"sentence1": "Ann left.", "sentence2": "Ann left.", "idx": 0})
