"""Metrics of the pydocs tasks, `(targets, predictions) -> {name: value}`, all in percent, and trivial baselines."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from t5x_lite.tasks import metrics


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target, blanks around them aside."""
    return metrics.accuracy([t.strip() for t in targets], [p.strip() for p in predictions])


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, F measure without stemming, as the plain mean over examples: no resampling, no chance."""
    return metrics.rouge_mean(targets, predictions, ("rouge1", "rouge2", "rougeL"))


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
