"""The metrics of T5's tasks, `(targets, predictions) -> {name: value}`, in percent unless said otherwise.

Names and results are those of `t5.evaluation.metrics`; scikit-learn, SciPy, sacrebleu and rouge-score do the counting.
`METRICS` names those that need nothing but texts or labels, for tasks put together without code.

Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 2.3.
"""

import itertools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import editdistance
import numpy as np
import sacrebleu
import scipy.special
import scipy.stats
import sklearn.metrics
from rouge_score import rouge_scorer, scoring

from t5x_lite.tasks import question_answering_scores as qa

# Of targets and predictions: sequences, or arrays.
Metric = Callable[[Any, Any], dict[str, float]]

ROUGE_KEYS = ("rouge1", "rouge2", "rougeLsum")


# Classes -----------------------------------------------------------------------------------------------------------


def accuracy(targets: Sequence[Hashable], predictions: Sequence[Hashable]) -> dict[str, float]:
    """Share of predictions equal to their targets: class numbers, or whole texts."""
    return _share_equal("accuracy", targets, predictions)


def sequence_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predicted texts equal to their targets to the last character."""
    return _share_equal("sequence_accuracy", targets, predictions)


def _share_equal(name: str, targets, predictions) -> dict[str, float]:
    return {name: 100 * float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


def all_match(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """100 where every prediction equals its target, else 0. For `mean_group_metric`."""
    return {"exact_match": 100 * float(np.array_equal(targets, predictions))}


def sklearn_metrics_wrapper(
    metric_str: str,
    metric_dict_str: str | None = None,
    metric_post_process_fn: Callable[[float], float] | None = None,
    **metric_fn_kwargs,
) -> Metric:
    """A metric from the function `metric_str` of `sklearn.metrics`.

    Args:
      metric_dict_str: the name to report it under; its own by default.
      metric_post_process_fn: applied to its value, such as a factor.
      **metric_fn_kwargs: given to the function.

    Raises:
      ValueError: scikit-learn has no such metric.
    """
    function = getattr(sklearn.metrics, metric_str, None)
    if function is None:
        raise ValueError(f"sklearn.metrics has no {metric_str!r}")

    def metric(targets, predictions):
        value = function(targets, predictions, **metric_fn_kwargs)
        if metric_post_process_fn is not None:
            value = metric_post_process_fn(value)
        return {metric_dict_str or metric_str: value}

    return metric


def matthews_corrcoef(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Matthews' correlation of class numbers, of CoLA; 0 where either side is constant."""
    return {"matthews_corrcoef": 100 * sklearn.metrics.matthews_corrcoef(targets, predictions)}


def mean_multiclass_f1(num_classes: int, **metric_fn_kwargs) -> Metric:
    """The plain mean of the classes' F1, named `mean_{num_classes}class_f1`."""
    return sklearn_metrics_wrapper(
        "fbeta_score",
        f"mean_{num_classes}class_f1",
        lambda value: 100 * value,
        beta=1,
        labels=range(num_classes),
        average="macro",
        **metric_fn_kwargs,
    )


def f1_score_with_invalid(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """F1 of class 1 of two; what is neither 0 nor 1 counts as the wrong one."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    valid = (predictions == 0) | (predictions == 1)
    return {"f1": 100 * sklearn.metrics.f1_score(targets, np.where(valid, predictions, 1 - targets))}


def auc(
    targets: Sequence[float], predictions: Sequence[float], targets_threshold: float | None = None
) -> dict[str, float]:
    """Areas under the ROC and the precision-recall curve, in [0, 1].

    Args:
      targets: 0 or 1, or any values with `targets_threshold`, at and above which they are 1.
      predictions: the higher, the likelier 1.
    """
    if targets_threshold is not None:
        targets = (np.asarray(targets) >= targets_threshold).astype(np.int32)
    return {
        "auc-roc": sklearn.metrics.roc_auc_score(targets, predictions),
        "auc-pr": sklearn.metrics.average_precision_score(targets, predictions),
    }


def score_auc(targets: Sequence[float], scores: Sequence[float], targets_threshold: float | None = None):
    """`auc` of the model's scores (log-likelihoods of the targets) instead of its decoded predictions."""
    return auc(targets, scores, targets_threshold)


# Numbers -----------------------------------------------------------------------------------------------------------


def pearson_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Pearson's correlation; NaN where either side is constant."""
    return {"pearson_corrcoef": 100 * float(scipy.stats.pearsonr(targets, predictions)[0])}


def spearman_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation; NaN where either side is constant."""
    return {"spearman_corrcoef": 100 * float(scipy.stats.spearmanr(targets, predictions)[0])}


# Texts -------------------------------------------------------------------------------------------------------------


def bleu(
    targets: Sequence[str] | Sequence[Sequence[str]], predictions: Sequence[str], tokenizer: str = "intl"
) -> dict[str, float]:
    """Corpus BLEU by sacrebleu with "exp" smoothing and the "intl" tokenizer.

    Args:
      targets: one reference for each prediction, or lists, which sacrebleu takes for *streams* as in the original:
        `targets[i][j]` is reference i of prediction j.
    """
    streams: Sequence[Any] = targets if isinstance(targets[0], list) else [targets]
    score = sacrebleu.corpus_bleu(
        predictions,
        streams,
        smooth_method="exp",
        force=False,
        lowercase=False,
        tokenize=tokenizer,
        use_effective_order=False,
    )
    return {"bleu": score.score}


def rouge(
    targets: Sequence[str], predictions: Sequence[str], score_keys: Sequence[str] = ROUGE_KEYS, seed: int = 0, **kwargs
) -> dict[str, float]:
    """ROUGE F of each key: the median of 1,000 bootstrap resamples, the number that T5's tables show.

    rouge-score draws from NumPy's global generator; here it stands at `seed` meanwhile and is put back afterwards, so
    that equal answers score alike. `rouge_mean` is the same without resampling.

    Args:
      **kwargs: of `rouge_scorer.RougeScorer`.
    """
    aggregator = scoring.BootstrapAggregator()
    for scores in _rouge_scores(targets, predictions, score_keys, kwargs):
        aggregator.add_scores(scores)
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        result = aggregator.aggregate()
    finally:
        np.random.set_state(state)
    return {key: 100 * float(result[key].mid.fmeasure) for key in score_keys}


def rouge_mean(
    targets: Sequence[str], predictions: Sequence[str], score_keys: Sequence[str] = ROUGE_KEYS, **kwargs
) -> dict[str, float]:
    """ROUGE F of each key, the plain mean over the examples.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".

    Raises:
      ValueError: no examples.
    """
    scores = _rouge_scores(targets, predictions, score_keys, kwargs)
    if not scores:
        raise ValueError("rouge_mean needs at least one target and prediction")
    return {key: 100 * float(np.mean([score[key].fmeasure for score in scores])) for key in score_keys}


def _rouge_scores(targets, predictions, score_keys, kwargs):
    scorer = rouge_scorer.RougeScorer(list(score_keys), **kwargs)
    return [
        # rougeLsum compares line by line: a sentence that ends with " . " ends a line.
        scorer.score(target=target.replace(" . ", " .\n"), prediction=prediction.replace(" . ", " .\n"))
        for target, prediction in zip(targets, predictions, strict=True)
    ]


def edit_distance(targets: Sequence[str], predictions: Sequence[str], lower: bool = True) -> dict[str, float]:
    """Word-level Levenshtein distance, in words: its minimum, maximum, mean, median and sum over the examples."""

    def words(text: str) -> list[str]:
        # One split at each character that is not of a word, so that two in a row make an empty word between them.
        return re.split(r"\W", text.lower() if lower else text)

    distances = [editdistance.distance(words(p), words(t)) for t, p in zip(targets, predictions, strict=True)]
    return {
        "min_edit": min(distances),
        "max_edit": max(distances),
        "mean_edit": float(np.mean(distances)),
        "median_edit": float(np.median(distances)),
        "sum_edit": sum(distances),
    }


# Answers to questions ----------------------------------------------------------------------------------------------


def squad(targets: Sequence[Sequence[str] | str], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's `em` and `f1`, each question by the best of its answers."""
    return qa.answer_scores(targets, predictions, qa.normalize_squad)


def trivia_qa(targets: Sequence[Sequence[str] | str], predictions: Sequence[str]) -> dict[str, float]:
    """TriviaQA's `em` and `f1`, each question by the best of its answers."""
    return qa.answer_scores(targets, predictions, qa.normalize_trivia_qa)


def span_squad(targets: Sequence[Mapping[str, Any]], predictions: Sequence[str]) -> dict[str, float]:
    """`squad` of the words that "start: I end: J" points at, both ends included; anything else points at nothing.

    Empty words do not count here, while they do in the targets of `squad_span_space_tokenized`: behind punctuation the
    two disagree, in the original as well.

    Args:
      targets: with `answers` (texts) and `context`, whose words are what is left between non-word characters.
    """

    def words(text: str) -> list[str]:
        return re.sub(r"\W", " ", text).split()

    def answer(context: list[str], span: list[str]) -> str:
        try:
            return " ".join(context[int(span[1]) : int(span[3]) + 1])
        except (IndexError, ValueError):
            return ""

    answers = [
        answer(words(target["context"]), words(prediction))
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return squad([target["answers"] for target in targets], answers)


def coqa_f1(targets: Sequence[Sequence[str] | str], predictions: Sequence[str]) -> dict[str, float]:
    """CoQA's token F1, each turn by the best of its answers. Two answers of no words are equal."""

    def score(answer: list[str], prediction: list[str]) -> float:
        return qa.token_f1(answer, prediction) if answer or prediction else 1.0

    best = []
    for answers, prediction in zip(targets, predictions, strict=True):
        answers = [answers] if isinstance(answers, str) else answers
        words = qa.normalize_squad(prediction).split()
        best.append(max(score(qa.normalize_squad(answer).split(), words) for answer in answers))
    return {"f1": 100 * float(np.mean(best))}


# Groups ------------------------------------------------------------------------------------------------------------


def deduplicate_metric(metric_fn: Metric, group_key: str = "group", value_key: str = "value") -> Metric:
    """`metric_fn` on the first example of each group: of ReCoRD, one example for each answer comes from one question.

    Targets and predictions are dicts; a target's `group_key` names its group, `value_key` is what is compared.
    """

    def metric(targets, predictions):
        first = {}
        for target, prediction in zip(targets, predictions, strict=True):
            first.setdefault(target[group_key], (target[value_key], prediction[value_key]))
        return metric_fn([target for target, _ in first.values()], [prediction for _, prediction in first.values()])

    return metric


def mean_group_metric(
    metric_fn: Metric, group_key: str = "group", value_key: str = "value", return_subgroup_scores: bool = False
) -> Metric:
    """The mean over groups of `metric_fn` within the group. A sample that cuts groups apart gives other results.

    Args:
      return_subgroup_scores: report `GROUP-METRIC` of each group, too.
    """

    def metric(targets, predictions):
        groups: dict[Any, tuple[list, list]] = {}
        for target, prediction in zip(targets, predictions, strict=True):
            members = groups.setdefault(target[group_key], ([], []))
            members[0].append(target[value_key])
            members[1].append(prediction[value_key])
        scores: dict[str, list[float]] = {}
        for group, members in groups.items():
            for name, value in metric_fn(*members).items():
                scores.setdefault(name, []).append(value)
                if return_subgroup_scores:
                    scores[f"{group}-{name}"] = [value]
        return {name: float(np.mean(values)) for name, values in scores.items()}

    return metric


def multirc_f1_over_all_answers(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """`f1_score_with_invalid` of the `value` of each answer, whatever question it belongs to (MultiRC's F1a)."""
    return f1_score_with_invalid([t["value"] for t in targets], [p["value"] for p in predictions])


# Ranked answers ----------------------------------------------------------------------------------------------------


def rank_classification(
    targets: Sequence[tuple[Sequence[int], bool, float, int]],
    scores: Sequence[float],
    num_classes: int | None = None,
    normalize_by_target_length: bool = False,
    idx_len: int = 2,
) -> dict[str, float]:
    """How often the answer with the highest log-likelihood is a right one, in any order of the examples.

    `accuracy`, weighted; with `num_classes` and one right answer each also the plain mean of the classes' F1, or for
    two classes `f1`, `auc-roc` and `auc-pr` of class 1.

    Args:
      targets: ((number of the example, ..., number of the answer), is right, weight, tokens), made by the preprocessor
        and the postprocessor of this name.
      scores: log-likelihoods of the answers.
      num_classes: answers of each example, where all have as many.
      normalize_by_target_length: rank by log-likelihood a token.
      idx_len: numbers in an `idx`.

    Raises:
      ValueError: targets of another form, an `idx` that comes twice, or examples that lack answers.
    """
    if any(len(target) != 4 or np.size(target[0]) != idx_len for target in targets):
        raise ValueError(f"rank_classification takes targets (idx of {idx_len} numbers, is_correct, weight, length)")
    rows = sorted(
        (
            (tuple(idx), right, weight, score / length if normalize_by_target_length else score)
            for (idx, right, weight, length), score in zip(targets, scores, strict=True)
        ),
        key=lambda row: row[0],
    )
    if len({row[0] for row in rows}) < len(rows):
        raise ValueError(
            "rank_classification: an idx comes twice, so that answers cannot be told apart; several hosts "
            "that each count their examples from 0 make such ones"
        )
    examples = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row[0][0])]
    if num_classes and any(len(example) != num_classes for example in examples):
        raise ValueError(f"rank_classification: an example has not the {num_classes} answers of num_classes")
    best = [int(np.argmax([row[3] for row in example])) for example in examples]
    right = [[bool(row[1]) for row in example] for example in examples]
    # An example's weight is that of the answer chosen; all its answers have the same.
    weights = [example[chosen][2] for example, chosen in zip(examples, best)]
    result = {"accuracy": 100 * float(np.average([r[chosen] for r, chosen in zip(right, best)], weights=weights))}
    if not num_classes or any(sum(r) > 1 for r in right):
        return result
    labels = np.argmax(right, axis=1)
    if num_classes > 2:
        chosen = np.eye(num_classes, dtype=bool)[best]
        return result | mean_multiclass_f1(num_classes, sample_weight=weights)(np.array(right), chosen)
    probabilities = scipy.special.softmax(np.array([[row[3] for row in e] for e in examples], np.float32), axis=1)[:, 1]
    return result | {
        "f1": 100 * sklearn.metrics.f1_score(labels, best, sample_weight=weights),
        "auc-roc": 100 * sklearn.metrics.roc_auc_score(labels, probabilities, sample_weight=weights),
        "auc-pr": 100 * sklearn.metrics.average_precision_score(labels, probabilities, sample_weight=weights),
    }


# By name -----------------------------------------------------------------------------------------------------------

METRICS: dict[str, Metric] = {
    function.__name__: function
    for function in (
        accuracy,
        sequence_accuracy,
        matthews_corrcoef,
        f1_score_with_invalid,
        auc,
        pearson_corrcoef,
        spearman_corrcoef,
        bleu,
        rouge,
        rouge_mean,
        edit_distance,
        squad,
        trivia_qa,
        coqa_f1,
    )
}
