"""Questions asked with the book closed, and the masked names and dates that a model can learn from beforehand.

Sources: Roberts et al. 2020 (https://arxiv.org/abs/2002.08910); Guu et al. 2020 (https://arxiv.org/abs/2002.08909),
section 3.4, for salient spans.
"""

import seqio
import tensorflow as tf

from t5x_lite.tasks.text_preprocessors import Features


@seqio.map_over_dataset
def natural_questions_open(x: Features, prefix: str = "nq question: ") -> Features:
    """The question alone -> the first answer; `answers` [n] are kept."""
    return _closed_book(prefix, x["question"], x["answer"][0], x["answer"])


@seqio.map_over_dataset
def web_questions_open(x: Features, prefix: str = "wq question: ") -> Features:
    """The question alone -> the first answer; `answers` [n] are kept."""
    return _closed_book(prefix, x["question"], x["answers"][0], x["answers"])


@seqio.map_over_dataset
def trivia_qa_open(x: Features, prefix: str = "trivia_qa question: ") -> Features:
    """The question alone -> the answer; its aliases are kept as `answers` [n]."""
    return _closed_book(prefix, x["question"], x["answer"]["value"], x["answer"]["aliases"])


@seqio.map_over_dataset
def trivia_question(x: Features) -> Features:
    """`trivia question: …` -> the answer, of T5's notebook on trivia: in lower case (ASCII), less a pair of '…'."""

    def plain(text):
        return tf.strings.regex_replace(tf.strings.lower(text), "'(.*)'", r"\1")

    return {
        "inputs": tf.strings.join(["trivia question: ", plain(x["question"])]),
        "targets": plain(x["answer"]["value"]),
    }


def _closed_book(prefix: str, question: tf.Tensor, target: tf.Tensor, answers: tf.Tensor) -> Features:
    return {"inputs": tf.strings.join([prefix, question]), "targets": target, "answers": answers}


@seqio.map_over_dataset(num_seeds=1)
def sample_answer(x: Features, seed: tf.Tensor) -> Features:
    """`targets` drawn from `answers`, anew in each epoch, and `answers` in a random order."""
    answers = tf.random.experimental.stateless_shuffle(x["answers"], seed)
    return {**x, "targets": answers[0], "answers": answers}


def mask_salient_spans(dataset: tf.data.Dataset, prefix: str = "nem", mask: str = "_X_") -> tf.data.Dataset:
    """`nem: ` + the text with one of its spans masked -> that span, for each of them.

    Args:
      dataset: `text`, and `spans` with `start` and `limit` [n], in bytes.
    """

    @seqio.map_over_dataset
    def each(x):
        starts, limits = (tf.cast(x["spans"][key], tf.int32) for key in ("start", "limit"))
        text = tf.repeat(x["text"], tf.size(starts))
        before = tf.strings.substr(text, tf.zeros_like(starts), starts)
        after = tf.strings.substr(text, limits, tf.strings.length(text) - limits)
        return {
            "inputs": tf.strings.join([f"{prefix}: ", before, mask, after]),
            "targets": tf.strings.substr(text, starts, limits - starts),
        }

    return each(dataset).unbatch()
