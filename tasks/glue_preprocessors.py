"""GLUE and SuperGLUE as text, but for Winograd schemas (`pronoun_preprocessors`).

Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 2.4 and appendix D.
"""

from collections.abc import Sequence

import seqio
import tensorflow as tf

from t5x_lite.tasks.text_preprocessors import Features

UNKNOWN = "<unk>"  # the target where a test set keeps its labels to itself


@seqio.map_over_dataset
def glue(
    x: Features,
    benchmark_name: str,
    label_names: Sequence[str],
    feature_names: Sequence[str] | None = None,
    id_key: str | None = "idx",
) -> Features:
    """`mnli hypothesis: … premise: …` -> the label's name, `<unk>` where it is -1; `idx` is kept.

    Of MultiRC, `<br>` becomes a blank and `<b>`, `</b>` go (in lower case only), and the parts of `idx` are kept as
    `idx/paragraph`, `idx/question` and `idx/answer`.

    Args:
      benchmark_name: the first word of the inputs.
      label_names: by class number.
      feature_names: what is shown, in this order; by default all but `label` and `idx`, in the order of the alphabet.
      id_key: the feature kept as `idx`; None for none.
    """
    parts = [benchmark_name]
    for key in feature_names or sorted(set(x) - {"label", "idx"}):
        parts += [f"{key}:", x[key]]
    inputs = tf.strings.join(parts, separator=" ")
    if benchmark_name == "multirc":
        inputs = tf.strings.regex_replace(tf.strings.regex_replace(inputs, "<br>", " "), "</?b>", "")
        kept = {f"idx/{part}": x["idx"][part] for part in ("paragraph", "question", "answer")}
    else:
        kept = {"idx": x[id_key]} if id_key else {}
    return {**kept, "inputs": inputs, "targets": label_text(x["label"], label_names)}


def label_text(label: tf.Tensor, label_names: Sequence[str]) -> tf.Tensor:
    """The name of class `label` (an integer scalar), `<unk>` for -1."""
    return tf.constant([UNKNOWN, *label_names])[label + 1]


@seqio.map_over_dataset
def stsb(x: Features) -> Features:
    """`stsb sentence1: … sentence2: …` -> the similarity to the nearest fifth, as "3.4".

    Halves are rounded to even in float32 (2.5 is "2.4"); the label -1 of the test set is "-1.0".
    """
    return {
        "inputs": tf.strings.join(["stsb sentence1:", x["sentence1"], "sentence2:", x["sentence2"]], separator=" "),
        "targets": tf.strings.as_string(tf.round(5 * x["label"]) / 5, precision=1),
        "idx": x["idx"],
    }


def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`record query: … entities: a, b passage: …` -> an answer; an example for each, or one with `<unk>` for none.

    A highlight is a sentence of the passage: `\\n@highlight\\n` becomes a blank after `.`, `?`, `!`, `"` and `'`, and
    ". " elsewhere. `answers` (all), `idx/passage` and `idx/query` are kept.
    """

    def one_for_each_answer(x):
        passage = tf.strings.regex_replace(x["passage"], "([.?!\"'])\n@highlight\n", r"\1 ")
        passage = tf.strings.regex_replace(passage, "\n@highlight\n", ". ")
        entities = tf.strings.reduce_join(x["entities"], separator=", ")
        answers = x["answers"]
        targets = tf.cond(tf.size(answers) > 0, lambda: answers, lambda: tf.constant([UNKNOWN]))
        every = {
            "inputs": tf.strings.join(
                ["record query:", x["query"], "entities:", entities, "passage:", passage], separator=" "
            ),
            "answers": answers,
            "idx/passage": x["idx"]["passage"],
            "idx/query": x["idx"]["query"],
        }
        n = tf.size(targets)
        return {"targets": targets, **{key: tf.repeat(value[tf.newaxis], n, axis=0) for key, value in every.items()}}

    return dataset.map(one_for_each_answer, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
