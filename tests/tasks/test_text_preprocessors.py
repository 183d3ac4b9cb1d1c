"""Formats that serve many data sets: translation, tables, ranked answers."""

import babel
import numpy as np
import pytest
import tensorflow as tf

from t5x_lite.tasks import preprocessors, question_preprocessors, text_preprocessors


def run(function, dataset, **arguments):
    if not isinstance(dataset, tf.data.Dataset):
        dataset = tf.data.Dataset.from_tensors(dataset)
    return list(function(dataset, **arguments).as_numpy_iterator())


def test_one_module_has_them_all_under_t5s_names():
    assert preprocessors.squad is question_preprocessors.squad
    assert preprocessors.translate is text_preprocessors.translate


def test_translate_names_languages_in_english():
    for source, target, names in (("de", "en", "German to English"), ("zh-cn", "ro", "Chinese to Romanian")):
        found = run(
            text_preprocessors.translate, {source: "x  y", target: "z"}, source_language=source, target_language=target
        )
        assert found == [{"inputs": f"translate {names}: x  y".encode(), "targets": b"z"}]
    with pytest.raises(babel.UnknownLocaleError):
        run(text_preprocessors.translate, {"qq": "x", "en": "y"}, source_language="qq", target_language="en")


def test_multi_translate_needs_both_languages():
    def example(languages):
        return {
            "translations": {
                "language": tf.constant(languages),
                "translation": tf.constant([f"in {language}" for language in languages]),
            }
        }

    arguments = {"source_language": "de", "target_language": "en"}
    assert run(text_preprocessors.multi_translate, example(["fr", "en", "de"]), **arguments) == [
        {"inputs": b"translate German to English: in de", "targets": b"in en"}
    ]
    assert run(text_preprocessors.multi_translate, example(["fr", "en"]), **arguments) == []


def test_summarize():
    found = run(text_preprocessors.summarize, {"a": " x\n", "b": "y"}, article_key="a", summary_key="b")
    assert found == [{"inputs": b"summarize:  x\n", "targets": b"y"}]


def test_parse_tsv():
    lines = tf.data.Dataset.from_tensors('a "b"\tc\td')
    assert run(text_preprocessors.parse_tsv, lines, field_names=["x", "y", "z"]) == [
        {"x": b'a "b"', "y": b"c", "z": b"d"}
    ]
    assert run(text_preprocessors.parse_tsv, lines, field_columns=[0, 2]) == [{"inputs": b'a "b"', "targets": b"d"}]


def test_preprocess_tsv():
    lines = tf.data.Dataset.from_tensors("6,7,42")
    assert run(
        text_preprocessors.preprocess_tsv,
        lines,
        field_delim=",",
        num_fields=3,
        inputs_format="numerator: {2} denominator: {1} {x}",
        targets_format="{0}{0}",
    ) == [{"inputs": b"numerator: 42 denominator: 7 {x}", "targets": b"66"}]
    assert run(
        text_preprocessors.preprocess_tsv,
        lines,
        field_delim=",",
        field_names=["q", "d", "n"],
        inputs_format="{n} over {d} {0}",
        targets_format="{q}",
    ) == [{"inputs": b"42 over 7 {0}", "targets": b"6"}]
    quoted = tf.data.Dataset.from_tensors('"a,b",c')
    assert run(text_preprocessors.preprocess_tsv, quoted, field_delim=",", use_quote_delim=True) == [
        {"inputs": b"a,b", "targets": b"c"}
    ]


CHOICE = {
    "premise": "It rained.",
    "question": "effect",
    "options": {"a": "Wet.", "b": "Dry."},
    "label": np.int64(0),
    "weight": 0.5,
}
FORMATS = {
    "inputs_formats": "{premise} What is the {question}?",
    "targets_formats": ["I think {options/a}", "No: {options/b}"],
}


def test_ranked_answers_in_each_mode():
    texts = [(b"It rained. What is the effect?", t) for t in (b"I think Wet.", b"No: Dry.")]
    data = tf.data.Dataset.from_tensors(CHOICE).repeat(2)
    for mode, expected in (("eval", [0, 1]), ("train", [0])):
        found = run(text_preprocessors.rank_classification_formatter, data, mode=mode, weight_key="weight", **FORMATS)
        assert [(e["inputs"], e["targets"]) for e in found] == [texts[i] for i in expected] * 2
        assert [e["idx"].tolist() for e in found] == [[n, i] for n in (0, 1) for i in expected]
        assert [bool(e["is_correct"]) for e in found] == [i == 0 for i in expected] * 2
        assert {float(e["weight"]) for e in found} == {0.5}
    batches = run(text_preprocessors.rank_classification_formatter, data, mode="fewshot_eval", **FORMATS)
    assert [b["targets"].tolist() for b in batches] == [[t for _, t in texts]] * 2
    assert "weight" not in batches[0]


def test_several_answers_may_be_right():
    many = {**CHOICE, "label": tf.constant([0, 1], tf.int64)}
    found = run(text_preprocessors.rank_classification_formatter, many, mode="train", **FORMATS)
    assert [e["targets"] for e in found] == [b"I think Wet.", b"No: Dry."]


def test_ranked_answers_pass_features_through():
    arguments = dict(
        inputs_fn=lambda x: tf.stack([x["premise"]] * 2),
        targets_fn=lambda x: tf.stack(["a", "b"]),
        is_correct_fn=lambda x: tf.one_hot(x["label"], 2),
    )
    found = run(text_preprocessors.rank_classification, CHOICE, passthrough_feature_keys=["question"], **arguments)
    assert [e["question"] for e in found] == [b"effect"] * 2
    with pytest.raises(ValueError, match="'targets' is taken"):
        run(text_preprocessors.rank_classification, CHOICE, passthrough_feature_keys=["targets"], **arguments)
    with pytest.raises(ValueError, match="mode is"):
        run(text_preprocessors.rank_classification, CHOICE, mode="test", **arguments)
    with pytest.raises(tf.errors.InvalidArgumentError, match="as many values"):
        run(text_preprocessors.rank_classification, CHOICE, **{**arguments, "targets_fn": lambda x: tf.stack(["a"])})


@pytest.mark.parametrize(
    "formats, match",
    [
        ({"inputs_formats": "a", "targets_formats": "b"}, "is a list"),
        ({"inputs_formats": ["a"], "targets_formats": ["b", "c"]}, "one length"),
        ({"inputs_formats": "{label}", "targets_formats": ["b", "c"]}, "is no text"),
        ({"inputs_formats": "{options}", "targets_formats": ["b", "c"]}, "is no text"),
    ],
)
def test_formats_that_cannot_be_filled(formats, match):
    with pytest.raises(ValueError, match=match):
        run(text_preprocessors.rank_classification_formatter, CHOICE, **formats)
