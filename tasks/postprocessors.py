"""From decoded text to what a metric compares, under the names of `t5.data.postprocessors`.

seqio calls each with a text, `example` (the features of the example, strings as UTF-8 bytes) and `is_target`: once with
the target, once with the prediction.
"""

from collections.abc import Sequence
from typing import Any

# What WSC's answers may have in front of them without being another answer.
_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose your".split()
)


def string_to_float(string: str, default: float = -1.0, **unused_kwargs) -> float:
    """The number that the text is, or `default`."""
    try:
        return float(string)
    except ValueError:
        return default


def strip(string: str, **unused_kwargs) -> str:
    """The text without blanks around it. Not in T5."""
    return string.strip()


def lower_text(string: str, **unused_kwargs) -> str:
    """The text in lower case."""
    return string.lower()


def string_label_to_class_id(
    string_label: str, label_classes: Sequence[str], default: int = -1, **unused_kwargs
) -> int:
    """The place of the text in `label_classes`, letter for letter, or `default`."""
    return label_classes.index(string_label) if string_label in label_classes else default


def multirc(string_label: str, example=None, is_target: bool = False) -> dict[str, Any]:
    """`value`: 0 for "False", 1 for "True", -1 for anything else; of a target also `group`, its question's number."""
    result = {"value": string_label_to_class_id(string_label, ("False", "True"))}
    if is_target:
        result["group"] = int(example["idx/question"])
    return result


def record(answer: str, example=None, is_target: bool = False) -> dict[str, Any]:
    """`value`: the answer, or of a target all that are right, with `group`, its (passage, query) numbers."""
    if is_target:
        return {"value": _texts(example["answers"]), "group": (int(example["idx/passage"]), int(example["idx/query"]))}
    return {"value": answer}


def qa(answer: str, example=None, is_target: bool = False) -> str | list[str]:
    """The answer, or of a target all that are right."""
    return _texts(example["answers"]) if is_target else answer


def span_qa(answer: str, example=None, is_target: bool = False) -> str | dict[str, Any]:
    """The answer, or of a target all that are right and the context that they are spans of."""
    if is_target:
        return {"answers": _texts(example["answers"]), "context": _text(example["context"])}
    return answer


def wsc_simple(prediction: str, example=None, is_target: bool = False) -> int:
    """Of a target its label; of a prediction whether it names the referent: 1, 0, or -1 for an empty one.

    Capitals and determiners are ignored, and one may say more than the other ("fuzzy bunny", "bunny"), but an
    apostrophe in one of them alone makes two of them ("Bob", "Bob's hat").
    """
    if is_target:
        return example["label"]
    prediction, referent = (_without_determiners(text) for text in (prediction, _text(example["targets_pretokenized"])))
    if not prediction:
        return -1  # 0 would be right where the label is 0
    if ("'" in prediction) != ("'" in referent):
        return 0
    said, meant = set(prediction.split(" ")), set(referent.split(" "))
    return int(said <= meant or meant <= said)


def _without_determiners(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)


def rank_classification(
    score: float, example=None, is_target: bool = False, passthrough_feature_keys: Sequence[str] | None = None
):
    """The score; of a target what `metrics.rank_classification` takes: (idx, is_correct, weight, tokens in the target).

    Args:
      passthrough_feature_keys: features whose values follow.
    """
    if not is_target:
        return score
    fixed = (tuple(example["idx"]), example["is_correct"], example.get("weight", 1.0), len(example["targets"]))
    return (*fixed, *(example[key] for key in passthrough_feature_keys or ()))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _texts(values) -> list[str]:
    return [_text(value) for value in values]
