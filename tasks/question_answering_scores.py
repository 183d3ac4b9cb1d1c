"""Exact match and token F1 of answers, as the official scripts of SQuAD 1.1, TriviaQA and CoQA count them.

Sources: https://rajpurkar.github.io/SQuAD-explorer (evaluate-v1.1.py), https://github.com/mandarjoshi90/triviaqa
(evaluation/triviaqa_evaluation.py), https://stanfordnlp.github.io/coqa (evaluate-v1.0.py).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
# TriviaQA puts blanks in the place of punctuation, typographic quotes among it.
_BLANK_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`_", " "))


def normalize_squad(answer: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single blanks."""
    return _normalize(answer, _DELETE_PUNCTUATION)


def normalize_trivia_qa(answer: str) -> str:
    """As `normalize_squad`, but with a blank in the place of each punctuation mark."""
    return _normalize(answer, _BLANK_PUNCTUATION)


def _normalize(answer: str, punctuation: dict) -> str:
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(punctuation)).split())


def token_f1(target: Sequence[str], prediction: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, as bags, in [0, 1]; 0 where none is shared."""
    shared = sum((Counter(target) & Counter(prediction)).values())
    return 2 * shared / (len(target) + len(prediction)) if shared else 0.0


def answer_scores(
    targets: Sequence[Sequence[str] | str], predictions: Sequence[str], normalize: Callable[[str], str]
) -> dict[str, float]:
    """Mean exact match `em` and token F1 `f1` in percent, each question by the best of its answers.

    Args:
      targets: the accepted answers of each question, at least one; a text is one answer.
      normalize: applied to answers and predictions before they are compared.

    Raises:
      ValueError: as many predictions as questions are needed.
    """
    exact, f1 = [], []
    for answers, prediction in zip(targets, predictions, strict=True):
        answers = [normalize(answer) for answer in ([answers] if isinstance(answers, str) else answers)]
        prediction = normalize(prediction)
        exact.append(prediction in answers)
        f1.append(max(token_f1(answer.split(), prediction.split()) for answer in answers))
    return {"em": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(f1))}
