"""Question answering as text, with a text that has the answer: SQuAD and TriviaQA.

Regular expressions are RE2's: `\\s` and `[[:punct:]]` know ASCII only, so that a no-break space and typographic
quotation marks stay as they are, while `\\W` takes every letter outside ASCII for the end of a word.

Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 2.4.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from t5x_lite.tasks.text_preprocessors import Features


def _blanks_around_punctuation(text: tf.Tensor) -> tf.Tensor:
    return _single_blanks(tf.strings.regex_replace(text, "([[:punct:]])", r" \1 "))


def _single_blanks(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(text, r"\s+", " ")


# SQuAD -------------------------------------------------------------------------------------------------------------


@seqio.map_over_dataset
def squad(x: Features, include_context: bool = True) -> Features:
    """`question: … context: …` -> the first answer; `id`, `question`, `context` and `answers` [n] are kept.

    All have blanks around punctuation and no other runs of blanks. Blanks at either end are left: "$3.5 million" is
    asked for as " $ 3 . 5 million".

    Args:
      include_context: `squad trivia question: …` without it.
    """
    question, context, answers = (
        _blanks_around_punctuation(text) for text in (x["question"], x["context"], x["answers"]["text"])
    )
    if include_context:
        inputs = tf.strings.join(["question:", question, "context:", context], separator=" ")
    else:
        inputs = tf.strings.join(["squad trivia question:", question], separator=" ")
    return {
        "inputs": _single_blanks(inputs),
        "targets": answers[0],
        "id": x["id"],
        "context": context,
        "question": question,
        "answers": answers,
    }


def squad_span_space_tokenized(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`squad`, but with the first place of the answer among the context's words as the target: `start: 3 end: 5`.

    Words are what is left between non-word characters, empty ones included; both ends belong to the answer. Examples
    whose answer is not found are dropped, and so are answers at the very end: the search stops one place short of it,
    as in the original.
    """

    @seqio.map_over_dataset
    def to_span(x):
        answer, context = (
            tf.strings.split(tf.strings.regex_replace(x[key], r"\W", " "), sep=" ") for key in ("targets", "context")
        )
        length = tf.size(answer)
        places = _places(answer, context, tf.size(context) - length)
        start = tf.cond(tf.size(places) > 0, lambda: places[0], lambda: -1)
        span = tf.strings.join(
            ["start: ", tf.strings.as_string(start), " end: ", tf.strings.as_string(start + length - 1)]
        )
        return {**x, "targets": tf.where(start < 0, "", span)}

    return to_span(squad(dataset)).filter(lambda x: x["targets"] != "")


def _places(needle: tf.Tensor, haystack: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
    """All i < `stop` where `needle` [m] stands in `haystack` [n], int32, ascending; `stop` is at most n - m + 1."""
    starts = tf.range(tf.maximum(stop, 0))
    windows = tf.gather(haystack, starts[:, tf.newaxis] + tf.range(tf.size(needle)))
    return tf.boolean_mask(starts, tf.reduce_all(windows == needle, axis=1))


# TriviaQA ----------------------------------------------------------------------------------------------------------


def trivia_qa(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`question: … context: …` -> an alias of the answer, for every pair of a context and an alias found in it.

    Contexts are the Wikipedia pages and then the search results. An alias is looked for as a regular expression without
    regard to ASCII capitals, and any part of a word will do ("art" in "party").
    """

    @seqio.map_over_dataset
    def pairs(x):
        contexts = []
        if "entity_pages" in x:
            contexts.append(x["entity_pages"]["wiki_context"])
        if "search_results" in x:
            contexts.append(x["search_results"]["search_context"])
        contexts = _blanks_around_punctuation(tf.concat(contexts, axis=0))
        question = _blanks_around_punctuation(x["question"])
        aliases = _blanks_around_punctuation(x["answer"]["normalized_aliases"])
        folded = tf.strings.lower(contexts)

        def contain(alias):
            return tf.strings.regex_full_match(folded, tf.strings.lower(tf.strings.join([".*", alias, ".*"])))

        # By alias, so that each pattern is compiled once.
        found = tf.cond(
            tf.size(aliases) > 0,
            lambda: tf.map_fn(contain, aliases, fn_output_signature=tf.TensorSpec([None], tf.bool)),
            lambda: tf.zeros([0, tf.size(contexts)], tf.bool),
        )
        which, alias = tf.unstack(tf.where(tf.transpose(found)), axis=1)  # by context, then by alias
        inputs = tf.strings.join(["question:", question, "context:", tf.gather(contexts, which)], separator=" ")
        return {"inputs": _single_blanks(inputs), "targets": tf.gather(aliases, alias)}

    return pairs(dataset).unbatch()


def trivia_qa_truncate_inputs(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature], sequence_length: Mapping[str, int]
) -> tf.data.Dataset:
    """Token inputs that are too long, cut to a window that has the targets in it; dropped where none has.

    The window is drawn uniformly from those of `sequence_length["inputs"]` tokens around their first place.
    """
    del output_features
    length = sequence_length["inputs"]

    @seqio.map_over_dataset(num_seeds=1)
    def cut(x, seed):
        inputs, targets = x["inputs"], x["targets"]

        def window():
            size, wanted = tf.size(inputs), tf.size(targets)
            places = _places(targets, inputs, size - wanted + 1)

            def around():
                lowest = tf.maximum(0, places[0] + wanted - length)
                highest = tf.minimum(places[0], size - length)
                start = tf.random.stateless_uniform([], seed, lowest, highest + 1, tf.int32)
                return inputs[start : start + length]

            return tf.cond((tf.size(places) > 0) & (wanted <= length), around, lambda: inputs[:0])

        return {"inputs": tf.cond(tf.size(inputs) > length, window, lambda: inputs), "targets": targets}

    return cut(dataset).filter(lambda x: tf.size(x["inputs"]) > 0)
