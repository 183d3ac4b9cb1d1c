"""Decoded text to what metrics compare."""

import numpy as np
import pytest

from t5x_lite.tasks import postprocessors


def test_numbers_classes_and_case():
    assert postprocessors.string_to_float("3.4") == 3.4
    assert postprocessors.string_to_float("high") == -1.0
    assert postprocessors.string_to_float("", default=2.5, example={}, is_target=True) == 2.5
    assert postprocessors.string_label_to_class_id("b", ("a", "b"), example={}) == 1
    assert postprocessors.string_label_to_class_id("b ", ("a", "b")) == -1
    assert postprocessors.lower_text("ÀB", example={}) == "àb"


def test_answers_with_their_example():
    example = {
        "answers": np.array(["Köln".encode(), b"B"], object),
        "context": b"C",
        "idx/question": np.int32(4),
        "idx/passage": np.int32(1),
        "idx/query": np.int32(2),
    }
    assert postprocessors.multirc("True", example=example, is_target=True) == {"value": 1, "group": 4}
    assert postprocessors.multirc("true") == {"value": -1}
    assert postprocessors.record("x", example=example, is_target=True) == {"value": ["Köln", "B"], "group": (1, 2)}
    assert postprocessors.record("x", example=example, is_target=False) == {"value": "x"}
    assert postprocessors.qa("x", example=example, is_target=True) == ["Köln", "B"]
    assert postprocessors.qa("x") == "x"
    assert postprocessors.span_qa("start: 1 end: 2") == "start: 1 end: 2"
    assert postprocessors.span_qa("x", example=example, is_target=True) == {"answers": ["Köln", "B"], "context": "C"}


@pytest.mark.parametrize(
    "prediction, referent, expected",
    [
        ("The Bunny", "the bunny", 1),
        ("fuzzy bunny", "bunny", 1),
        ("bunny", "his fuzzy bunny", 1),
        ("fuzzy cat", "fuzzy bunny", 0),
        ("hat", "Bob's hat", 0),
        ("Bob's", "Bob's hat", 1),
        (" bob ", "BOB", 1),
        ("", "Bob", -1),
        ("the", "Bob", -1),
        ("Bob", "the", 0),
    ],
)
def test_wsc_simple(prediction, referent, expected):
    example = {"targets_pretokenized": referent.encode(), "label": 1}
    assert postprocessors.wsc_simple(prediction, example=example) == expected
    assert postprocessors.wsc_simple("", example=example, is_target=True) == 1


def test_rank_classification():
    example = {"idx": np.array([3, 1]), "is_correct": True, "targets": [5, 6, 1], "kind": b"x"}
    assert postprocessors.rank_classification(-1.5) == -1.5
    assert postprocessors.rank_classification(0, example=example, is_target=True) == ((3, 1), True, 1.0, 3)
    weighted = {**example, "weight": 0.5}
    assert postprocessors.rank_classification(
        0, example=weighted, is_target=True, passthrough_feature_keys=("kind",)
    ) == ((3, 1), True, 0.5, 3, b"x")
