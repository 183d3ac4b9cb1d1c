"""Winograd schemas as text: WSC, WNLI and definite pronoun resolution (DPR).

T5 asks for the noun that a `*pronoun*` stands for. WSC gives a candidate and whether it is right, so that it trains on
the right ones alone and evaluates on all; WNLI is turned back into the schemas that it was made from.

Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 2.4.
"""

import re

import seqio
import tensorflow as tf

from t5x_lite.tasks.glue_preprocessors import label_text
from t5x_lite.tasks.text_preprocessors import Features

# Two texts of WSC whose span2_index does not point at the pronoun, and where the pronoun (X) is.
_PONY = "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
_PEBBLE = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use {} , but really for now, what more could they wish for?"
)
_MISPLACED = {
    _PONY + '"Good for him," he said. ': _PONY + '"Good for X ," he said.',
    _PEBBLE.format("it"): _PEBBLE.format("X"),
}


@seqio.map_over_dataset
def wsc(x: Features) -> Features:
    """`wsc text: …` with ` * ` around the noun and ` # ` around the pronoun -> "True", "False" or `<unk>`.

    No task of T5 uses it; `wsc_simple` is what they use.
    """

    def mark(text, span, index, sign):
        pattern = tf.strings.join([r"^((?:\S+\s){", tf.strings.as_string(index), "})(", span, ")"])
        return tf.strings.regex_replace(text, pattern, rf"\1{sign} \2 {sign}")

    text = mark(x["text"], x["span1_text"], x["span1_index"], "*")
    shift = 2 * tf.cast(x["span1_index"] < x["span2_index"], tf.int32)  # the two signs are words of their own
    text = mark(text, x["span2_text"], x["span2_index"] + shift, "#")
    return {
        "inputs": tf.strings.join(["wsc text:", text], separator=" "),
        "targets": label_text(x["label"], ("False", "True")),
        "idx": x["idx"],
    }


def wsc_simple(dataset: tf.data.Dataset, label: str = "wsc:", correct_referent_only: bool = False) -> tf.data.Dataset:
    """`wsc: Bob asked Tom if *he* can lend some money.` -> the candidate, right or wrong; `label` and `idx` are kept.

    The pronoun is put in the place of ` X `, wherever the text has one: "Malcolm X said" becomes "Malcolm *he* said".
    A pronoun at the end is followed by a blank. Both as in the original.

    Args:
      label: the first word of the inputs.
      correct_referent_only: leave out examples of label 0 (a label of -1 stays).

    Raises:
      tf.errors.InvalidArgumentError: while reading, where `span2_index` does not point at the pronoun.
    """

    def to_text(x):
        text = tf.strings.regex_replace(_with_pronoun_blanked(x), " X ", tf.strings.join([" *", x["span2_text"], "* "]))
        return {
            "inputs": tf.strings.join([label, text], separator=" "),
            "targets": x["span1_text"],
            "label": x.get("label", 0),
            "idx": x["idx"],
        }

    if correct_referent_only:
        dataset = dataset.filter(lambda x: tf.cast(x.get("label", False), tf.bool))
    return dataset.map(to_text, num_parallel_calls=tf.data.AUTOTUNE)


def _with_pronoun_blanked(x: Features) -> tf.Tensor:
    """The text, words parted by single blanks, with X for word `span2_index`."""

    def blanked():
        words, index = tf.strings.split(x["text"], sep=" "), x["span2_index"]
        checks = [tf.debugging.assert_greater(index, 0), tf.debugging.assert_less(index, tf.size(words))]
        with tf.control_dependencies(checks):
            checks = [tf.debugging.assert_equal(words[index], x["span2_text"])]
        with tf.control_dependencies(checks):
            before = tf.strings.reduce_join(words[:index], separator=" ")
        return tf.strings.join([before, "X", tf.strings.reduce_join(words[index + 1 :], separator=" ")], separator=" ")

    misplaced = [(x["text"] == text, lambda fixed=fixed: tf.constant(fixed)) for text, fixed in _MISPLACED.items()]
    return tf.case(misplaced, default=blanked)


@seqio.map_over_dataset
def definite_pronoun_resolution_simple(x: Features, label: str = "wsc:") -> Features:
    """`wsc: Bob asked Tom if *he* can lend some money.` -> "Tom".

    The pronoun in question is the first one with a blank before it and a blank, "." or "," after it.
    """
    pattern = tf.strings.join([" (", x["pronoun"], r")( |\.|,)"])
    sentence = tf.strings.regex_replace(x["sentence"], pattern, r" *\1*\2", replace_global=False)
    return {"inputs": tf.strings.join([label, sentence], separator=" "), "targets": x["candidates"][x["label"]]}


# WNLI: a premise with a pronoun, and a hypothesis that repeats part of it with a noun in the pronoun's place ---------

_PRONOUNS = frozenset("he she they it her his their them him".split())
_ARTICLES = ("a", "an", "the")
_MARKS = ".,?!"


@seqio.map_over_dataset
def wnli_simple(x: Features, label: str = "wsc:") -> Features:
    """`wsc: The fish ate the worm. *It* was tasty.` -> "The worm", out of premise and hypothesis.

    Meant for evaluation: T5 trains on WSC and DPR instead. `premise`, `hypothesis`, `label` and `idx` are kept.

    Raises:
      tf.errors.InvalidArgumentError: while reading, a premise without pronoun, or with nothing in common with the
        hypothesis.
    """

    def compute(premise: bytes, hypothesis: bytes) -> tuple[str, str]:
        return _schema(premise.decode(), hypothesis.decode(), label)

    inputs, targets = tf.numpy_function(compute, [x["sentence1"], x["sentence2"]], [tf.string, tf.string])
    return {
        "inputs": tf.ensure_shape(inputs, []),
        "targets": tf.ensure_shape(targets, []),
        "premise": x["sentence1"],
        "hypothesis": x["sentence2"],
        "label": x.get("label", 0),
        "idx": x["idx"],
    }


def _schema(premise: str, hypothesis: str, label: str) -> tuple[str, str]:
    """Inputs and targets of a WNLI pair."""
    said, words = _plain_words(hypothesis), _plain_words(premise)
    places = [i for i, word in enumerate(words) if word in _PRONOUNS]
    if not places:
        raise ValueError(f"WNLI: no pronoun in {premise!r}")
    # Of equally good ones the first.
    common = {i: (_common_start(words[:i][::-1], said[::-1]), _common_start(words[i + 1 :], said)) for i in places}
    best = max(places, key=lambda i: sum(common[i]))
    before, after = common[best]
    candidate = _between(words[best - before : best], words[best + 1 : best + 1 + after], " ".join(said))
    shown = premise.split(" ")
    word = shown[best]
    shown[best] = f"*{word[:-1]}* {word[-1]}" if word[-1] in _MARKS else f"*{word}*"
    return f"{label} {' '.join(shown)}", _as_written(candidate, hypothesis)


def _plain_words(text: str) -> list[str]:
    """In lower case, less one mark at the end of each."""
    words = [word[:-1] if word[-1:] and word[-1] in _MARKS else word for word in text.strip().lower().split(" ")]
    return [word for word in words if word]


def _common_start(words: list[str], others: list[str]) -> int:
    """How many of the first `words` stand together, as text, somewhere in `others`."""
    text = " ".join(others)
    return next((n for n in range(len(words)) if " ".join(words[: n + 1]) not in text), len(words))


def _between(before: list[str], after: list[str], hypothesis: str) -> str:
    """What the hypothesis has between the two, or before `after`, or after `before`; nothing where they are empty."""
    if not before and not after:
        return ""
    # The words are patterns, as they are in the original.
    for pattern in ([*before, "(.+)", *after], ["^(.+)", *after], [*before, "(.+)$"]):
        found = re.search(" ".join(pattern), hypothesis)
        if found:
            return found[1]
    return ""


def _as_written(candidate: str, hypothesis: str) -> str:
    """The candidate from its last article on, with the hypothesis's capitals, no mark at its end and no genitive."""
    words = candidate.split(" ")
    words = words[max((words.index(article) for article in _ARTICLES if article in words), default=0) :]
    pattern = " ".join(re.escape(word) + f"[{_MARKS}]?" for word in words)
    found = re.search(pattern, hypothesis, re.IGNORECASE)
    if found is None:
        raise ValueError(f"WNLI: {candidate!r} is not in {hypothesis!r}")
    text = found[0]
    if text and text[-1] in _MARKS:
        text = text[:-1]
    return text.removesuffix("'") if text.endswith("'") else text.removesuffix("'s")
