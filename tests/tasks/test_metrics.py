"""Metrics on answers small enough to count by hand."""

import math

import numpy as np
import pytest

from t5x_lite.tasks import metrics
from t5x_lite.tasks import question_answering_scores as qa


def test_accuracies():
    assert metrics.accuracy([0, 1, 2, 0], [0, 1, -1, 1]) == {"accuracy": 50.0}
    assert metrics.accuracy(["a", "b"], ["a", "b "]) == {"accuracy": 50.0}
    assert metrics.sequence_accuracy(["a b", "c"], ["a b", "d"]) == {"sequence_accuracy": 50.0}
    assert metrics.all_match([1, 0], [1, 0]) == {"exact_match": 100.0}
    assert metrics.all_match([1, 0], [1, 1]) == {"exact_match": 0.0}
    with pytest.raises(ValueError, match="zip"):
        metrics.accuracy([1], [1, 1])


def test_f1_takes_an_answer_that_is_no_class_for_the_wrong_one():
    # As predictions 1, 0, 1, 0 for 1, 1, 0, 0: one hit, one miss, one false alarm.
    assert metrics.f1_score_with_invalid([1, 1, 0, 0], [1, -1, -1, 0]) == {"f1": pytest.approx(50.0)}
    given = np.array([1, -1])
    metrics.f1_score_with_invalid([1, 1], given)
    assert given.tolist() == [1, -1]  # left as they were


def test_class_metrics_of_scikit_learn():
    # Hits 2, misses 1, false alarms 1, right rejections 2: (2·2 - 1·1) / sqrt(3·3·3·3).
    assert metrics.matthews_corrcoef([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]) == {
        "matthews_corrcoef": pytest.approx(100 / 3)
    }
    # F1 of the classes 1, 2/3 and 0 (an answer that is none costs class 2 its hit).
    assert metrics.mean_multiclass_f1(3)([0, 1, 1, 2], [0, 1, -1, -1]) == {
        "mean_3class_f1": pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    }
    assert metrics.sklearn_metrics_wrapper("accuracy_score", "acc", lambda v: 10 * v)([1, 0], [1, 1]) == {"acc": 5.0}
    with pytest.raises(ValueError, match="no 'nothing_score'"):
        metrics.sklearn_metrics_wrapper("nothing_score")


def test_area_under_curves():
    # Of the four pairs of a right and a wrong one, three are in order. Precision at the two right ones: 1, 2/3.
    found = metrics.auc([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    assert found == {"auc-roc": pytest.approx(0.75), "auc-pr": pytest.approx((1 + 2 / 3) / 2)}
    assert metrics.score_auc([0.5, 0.4], [-1.0, -2.0], targets_threshold=0.5) == {"auc-roc": 1.0, "auc-pr": 1.0}


def test_correlations():
    assert metrics.pearson_corrcoef([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == {"pearson_corrcoef": pytest.approx(100)}
    assert metrics.pearson_corrcoef([1, 2, 3], [1, 3, 2]) == {"pearson_corrcoef": pytest.approx(50)}
    assert metrics.spearman_corrcoef([1, 2, 3, 4], [1, 2, 3, 400]) == {"spearman_corrcoef": pytest.approx(100)}
    with pytest.warns(match="constant"):
        assert math.isnan(metrics.pearson_corrcoef([1, 2], [1, 1])["pearson_corrcoef"])


def test_bleu():
    target = "the cat sat on the mat"
    assert metrics.bleu([target], [target]) == {"bleu": pytest.approx(100)}
    # Four words of five, then 3 of 4, 2 of 3, 1 of 2, and one word too few: exp(1 - 6/5).
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 5)
    assert metrics.bleu([target], ["the cat sat on dogs"]) == {"bleu": pytest.approx(expected)}
    # "intl" parts punctuation from words in any script; case counts.
    assert metrics.bleu(["Das „Ja“ ist gut."], ["Das „ Ja “ ist gut ."])["bleu"] == pytest.approx(100)
    assert metrics.bleu([target], [target.upper()])["bleu"] < 1
    # Lists are streams of references: the second has a better one for the second prediction.
    streams = [["a b c d", "x x x x"], ["q q q q", "e f g h"]]
    assert metrics.bleu(streams, ["a b c d", "e f g h"])["bleu"] == pytest.approx(100)


def test_rouge_mean_by_hand():
    found = metrics.rouge_mean(["the cat sat"], ["the cat ran away"])
    assert found["rouge1"] == pytest.approx(100 * 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    # Sentences end at " . ": in another order they are as good for rougeLsum, which goes by sentences.
    for target, prediction in (("a b . c d", "c d . a b"), ("a b . c d", "c d a b"), ("c d a b", "a b . c d")):
        found = metrics.rouge_mean([target], [prediction], use_stemmer=True)["rougeLsum"]
        assert found == pytest.approx(100), (target, prediction)
    with pytest.raises(ValueError, match="at least one"):
        metrics.rouge_mean([], [])


def test_rouge_is_the_median_of_resamples_and_leaves_chance_alone():
    targets, predictions = ["a b c d e f g h"] * 8, ["a b c d e f g h"[: 2 * n + 1] for n in range(8)]
    assert metrics.rouge(targets, predictions, seed=1) != metrics.rouge(targets, predictions, seed=2)
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    first = metrics.rouge(targets, predictions)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(4)
    assert metrics.rouge(targets, predictions) == first
    assert metrics.rouge(targets, predictions)["rouge1"] == pytest.approx(
        metrics.rouge_mean(targets, predictions)["rouge1"], abs=15
    )
    assert metrics.rouge(["a b"], ["a b"]) == {"rouge1": 100, "rouge2": 100, "rougeLsum": 100}


def test_edit_distance():
    found = metrics.edit_distance(["The cat sat.", "a b", "a"], ["the dog sat.", "a b", "a b c"])
    assert found == {"min_edit": 0, "max_edit": 2, "mean_edit": 1.0, "median_edit": 1.0, "sum_edit": 3}
    assert metrics.edit_distance(["The"], ["the"], lower=False)["sum_edit"] == 1


def test_answers_are_normalized():
    assert qa.normalize_squad("The U.S.A.,  an  Answer!") == "usa answer"
    assert qa.normalize_trivia_qa("The ‘U.S.’ `rock_n_roll`") == "u s rock n roll"
    assert qa.normalize_squad("Theatre and another") == "theatre and another"  # articles are whole words


def test_answers_are_scored_by_the_best():
    targets = [["two words", "cat"], ["no"]]
    assert metrics.squad(targets, ["The cat.", "yes"]) == {"em": 50.0, "f1": 50.0}
    # One word of two said, of three wanted: 2·1/(2+3).
    assert metrics.squad([["one two three"]], ["one four"]) == {"em": 0.0, "f1": pytest.approx(40.0)}
    assert metrics.trivia_qa([["rock-n-roll"]], ["Rock n Roll"]) == {"em": 100.0, "f1": 100.0}
    assert metrics.squad([["rock-n-roll"]], ["Rock n Roll"])["em"] == 0.0
    assert metrics.squad(["cat"], ["the cat"]) == {"em": 100.0, "f1": 100.0}  # a text is one answer
    # Nothing left of either is an exact match that shares no word.
    assert metrics.squad([["the"]], ["a"]) == {"em": 100.0, "f1": 0.0}
    assert metrics.coqa_f1([["the"]], ["a"]) == {"f1": 100.0}
    assert metrics.coqa_f1([["one two three", "x"]], ["one four"]) == {"f1": pytest.approx(40.0)}


def test_spans_are_scored_by_their_words():
    target = {"answers": ["Ann won"], "context": "In 1998, Ann won; Bo lost."}
    for prediction, em in {
        "start: 2 end: 3": 100,
        "start: 2 end: 2": 0,
        "nonsense": 0,
        "start: two end: 3": 0,
        "": 0,
        "start: 2": 0,
    }.items():
        assert metrics.span_squad([target], [prediction])["em"] == em, prediction


def test_one_example_of_a_group_counts():
    targets = [{"group": (1, n), "value": ["yes"]} for n in (2, 2, 3)]
    predictions = [{"value": "yes"}, {"value": "no"}, {"value": "no"}]
    assert metrics.deduplicate_metric(metrics.squad)(targets, predictions) == {"em": 50.0, "f1": 50.0}


def test_groups_count_alike():
    targets = [{"group": g, "value": v} for g, v in ((1, 1), (1, 0), (2, 1), (1, 1))]
    predictions = [{"value": v} for v in (1, 0, 1, 0)]
    assert metrics.mean_group_metric(metrics.all_match)(targets, predictions) == {"exact_match": 50.0}
    assert metrics.mean_group_metric(metrics.accuracy, return_subgroup_scores=True)(targets, predictions) == {
        "accuracy": pytest.approx((200 / 3 + 100) / 2),
        "1-accuracy": pytest.approx(200 / 3),
        "2-accuracy": 100.0,
    }
    assert metrics.multirc_f1_over_all_answers(targets, predictions) == {"f1": pytest.approx(80.0)}


def ranked(*rows):
    """(example, answer, is right, score) rows as targets and scores."""
    return [((e, a), right, 1.0, 2 + a) for e, a, right, _ in rows], [score for *_, score in rows]


def test_rank_classification_of_two():
    # In any order. Example 0 is class 1 and found; example 1 is class 0 and missed; example 2 is class 0 and found.
    targets, scores = ranked(
        (1, 1, False, -1.0),
        (0, 0, False, -2.0),
        (0, 1, True, -1.0),
        (1, 0, True, -1.5),
        (2, 0, True, 0.0),
        (2, 1, False, -9.0),
    )
    found = metrics.rank_classification(targets, scores, num_classes=2)
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["f1"] == pytest.approx(200 / 3)  # one hit, one false alarm
    assert found["auc-roc"] == pytest.approx(100) and found["auc-pr"] == pytest.approx(100)
    assert metrics.rank_classification(targets, scores) == {"accuracy": pytest.approx(200 / 3)}


def test_rank_classification_of_more():
    targets, scores = ranked(
        (0, 0, True, 0.0),
        (0, 1, False, -1.0),
        (0, 2, False, -2.0),
        (1, 0, False, 0.0),
        (1, 1, True, -1.0),
        (1, 2, False, -2.0),
    )
    found = metrics.rank_classification(targets, scores, num_classes=3)
    assert found == {"accuracy": 50.0, "mean_3class_f1": pytest.approx(100 * (2 / 3) / 3)}
    # Two right answers: either will do, and only accuracy is reported.
    several = [(idx, right or idx == (1, 0), weight, n) for idx, right, weight, n in targets]
    assert metrics.rank_classification(several, scores, num_classes=3) == {"accuracy": 100.0}
    # By token the first answer of two tokens, -4/2, loses to the second of three, -4.5/3.
    targets, scores = ranked((0, 0, False, -4.0), (0, 1, True, -4.5))
    assert metrics.rank_classification(targets, scores) == {"accuracy": 0.0}
    assert metrics.rank_classification(targets, scores, normalize_by_target_length=True) == {"accuracy": 100.0}


def test_rank_classification_weighs_examples():
    targets, scores = ranked((0, 0, True, 0.0), (0, 1, False, -1.0), (1, 0, False, 0.0), (1, 1, True, -1.0))
    targets = [(idx, right, 3.0 if idx[0] == 0 else 1.0, n) for idx, right, _, n in targets]
    assert metrics.rank_classification(targets, scores) == {"accuracy": 75.0}


def test_rank_classification_refuses():
    targets, scores = ranked((0, 0, True, 0.0), (0, 1, False, -1.0))
    for given, match in (
        (([*targets, targets[0]], [*scores, 0.0]), "comes twice"),
        (([t[:3] for t in targets], scores), "takes targets"),
        (([(0, *t[1:]) for t in targets], scores), "takes targets"),
    ):
        with pytest.raises(ValueError, match=match):
            metrics.rank_classification(*given)
    with pytest.raises(ValueError, match="num_classes"):
        metrics.rank_classification(targets, scores, num_classes=3)


def test_metrics_by_name():
    assert {"accuracy", "rouge", "rouge_mean", "bleu", "squad", "edit_distance"} <= set(metrics.METRICS)
    for name in ("accuracy", "sequence_accuracy", "rouge", "rouge_mean", "bleu", "squad", "trivia_qa", "coqa_f1"):
        values = metrics.METRICS[name](["the very same words"], ["the very same words"])
        assert all(value == pytest.approx(100) for value in values.values()), name
