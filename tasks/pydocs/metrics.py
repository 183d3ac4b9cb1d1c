"""Metrics of the pydocs tasks, `(targets, predictions) -> {name: value}`, all in percent, and trivial baselines."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rouge_score import rouge_scorer

_ROUGE = ("rouge1", "rouge2", "rougeL")


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target, blanks around them aside."""
    right = sum(t.strip() == p.strip() for t, p in zip(targets, predictions, strict=True))
    return {"accuracy": 100 * right / max(1, len(targets))}


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, F measure without stemming, as the plain mean over examples: no resampling, no chance.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    scorer = rouge_scorer.RougeScorer(_ROUGE, use_stemmer=False)
    totals = dict.fromkeys(_ROUGE, 0.0)
    for target, prediction in zip(targets, predictions, strict=True):
        for name, score in scorer.score(target, prediction).items():
            totals[name] += score.fmeasure
    return {name: 100 * total / max(1, len(targets)) for name, total in totals.items()}


def most_frequent(values: Iterable[str]) -> str:
    """The most frequent value; the first in the alphabet among equals."""
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]


def library_baselines(train: Iterable[str], examples: Sequence[str]) -> dict[str, dict[str, float]]:
    """What always answering the commonest library of `train` scores on `examples` (library names)."""
    return {"majority class": accuracy(examples, [most_frequent(train)] * len(examples))}


def summary_baselines(
    train: Iterable[str], examples: Sequence[Mapping[str, str]], words: int = 10
) -> dict[str, dict[str, float]]:
    """What two guesses that read nothing, or hardly anything, score on `examples` (with `summary` and `body`).

    "most frequent summary" of `train`, and "first words of the body": as many words as `words` says.
    """
    targets = [e["summary"] for e in examples]
    frequent = most_frequent(train)
    return {
        "most frequent summary": rouge(targets, [frequent] * len(targets)),
        "first words of the body": rouge(targets, [" ".join(e["body"].split()[:words]) for e in examples]),
    }
