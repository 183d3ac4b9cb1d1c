"""Unsupervised objectives on text, before it is tokenized: `text` -> `inputs` and `targets`.

Alternatives that T5's authors tried beside those of the paper, under their names.
"""

import math
from collections.abc import Sequence

import seqio
import tensorflow as tf

# Unicode blocks of scripts that put no blanks between words, as a regular expression has them.
_NOT_SPACED = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u104f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u1980-\u19df\u19e0-\u19ff\u1a20-\u1aaf\ua980-\ua9df"  # Tai Lue, Khmer symbols, Tai Tham, Javanese
    "\u2e80-\u2eff\u3000-\u303f\u31c0-\u31ef"  # Chinese radicals, punctuation, strokes
    "\u3040-\u309f\u30a0-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters
)


@seqio.map_over_dataset
def lm(example):
    """No inputs, the text as targets."""
    return {"inputs": "", "targets": example["text"]}


@seqio.map_over_dataset
def pad_nonspaced_languages(example, text_key: str = "text"):
    """Blanks around every character of scripts that are written without, and every run of blanks made one."""
    text = tf.strings.regex_replace(example[text_key], f"([{_NOT_SPACED}])", r" \1 ")
    return example | {text_key: tf.strings.regex_replace(text, r"\s+", " ")}


def random_split_text(
    dataset: tf.data.Dataset,
    text_key: str = "text",
    min_words_per_segment: int = 16,
    max_words_per_segment: int = 512,
    max_words_total: int | None = 8192,
) -> tf.data.Dataset:
    """Texts cut into segments of words, each text into equal ones of a length drawn log-uniformly between the bounds.

    Args:
      max_words_total: of a longer text, seen as blocks of so many words, one block is drawn; None for the whole.
    """
    low, high = math.log(min_words_per_segment), math.log(max_words_per_segment)

    @seqio.map_over_dataset(num_seeds=2)
    def split(example, seeds):
        words = tf.strings.split(example[text_key])
        if max_words_total:
            blocks = tf.maximum(-(-tf.size(words) // max_words_total), 1)
            start = max_words_total * tf.random.stateless_uniform([], seeds[0], 0, blocks, tf.int32)
            words = words[start : start + max_words_total]
        length = tf.cast(tf.exp(tf.random.stateless_uniform([], seeds[1], low, high)), tf.int32)
        words = tf.pad(words, [[0, -tf.size(words) % length]])
        segments = tf.strings.reduce_join(tf.reshape(words, [-1, length]), axis=1, separator=" ")
        return {text_key: tf.strings.strip(segments)}

    return split(dataset).unbatch()


def split_text_to_words(dataset: tf.data.Dataset, text_key: str = "text", min_num_words: int = 2) -> tf.data.Dataset:
    """Adds `words` [n], the text cut at blanks; leaves out texts of fewer words."""

    def split(example):
        return example | {"words": tf.strings.split(example[text_key])}

    dataset = dataset.map(split, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.filter(lambda example: tf.size(example["words"]) >= min_num_words)


def fill_in_the_blank(dataset: tf.data.Dataset, text_key: str = "text", label: str = "fill: ") -> tf.data.Dataset:
    """A text cut at random into runs of words, every other run hidden as `X`: two examples, one the other's reverse.

    `fill: a b X d` -> `X c X`, and `fill: X c X` -> `a b X d`. The chance of a cut is drawn for each text, log-uniform
    from 1 / (words + 2) to one half; there is always one.
    """

    @seqio.map_over_dataset(num_seeds=3)
    def blank(example, seeds):
        words = example["words"]
        gaps = tf.size(words) - 1
        rarest = -tf.math.log(tf.cast(gaps, tf.float32) + 3.0)
        chance = tf.exp(tf.random.stateless_uniform([], seeds[0], rarest, -math.log(2.0)))
        cuts = tf.random.stateless_uniform([gaps], seeds[1]) < chance
        place = tf.random.stateless_uniform([], seeds[2], 0, gaps, tf.int32)
        cuts = tf.cond(tf.reduce_any(cuts), lambda: cuts, lambda: tf.range(gaps) == place)
        begins = tf.concat([[True], cuts], axis=0)
        odd = tf.cumsum(tf.cast(begins, tf.int32)) % 2 == 1

        def with_blanks(shown):
            parts = tf.where(shown, words, "X")
            return tf.strings.reduce_join(tf.boolean_mask(parts, tf.logical_or(shown, begins)), separator=" ")

        one, other = with_blanks(odd), with_blanks(tf.logical_not(odd))
        return {"inputs": tf.strings.join([label, tf.stack([other, one])]), "targets": tf.stack([one, other])}

    return blank(split_text_to_words(dataset, text_key)).unbatch()


def fill_in_the_blank_sized(
    dataset: tf.data.Dataset,
    size_bins: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    text_key: str = "text",
    label: str = "fill: ",
) -> tf.data.Dataset:
    """One run of words hidden, its size told by the nearest of `size_bins`: `fill: a _2_ d` -> `b c`.

    The size is uniform from the smallest bin up to, but without, the largest or the whole text.
    """
    bins = sorted(size_bins)

    @seqio.map_over_dataset(num_seeds=2)
    def blank(example, seeds):
        words = example["words"]
        number = tf.size(words)
        longest = tf.maximum(tf.minimum(number, bins[-1]), bins[0] + 1)
        size = tf.random.stateless_uniform([], seeds[0], bins[0], longest, tf.int32)
        start = tf.random.stateless_uniform([], seeds[1], 0, tf.maximum(number - size, 0) + 1, tf.int32)
        told = tf.gather(bins, tf.argmin(tf.abs(tf.constant(bins) - size)))
        hole = tf.strings.join(["_", tf.strings.as_string(told), "_"])
        shown = tf.concat([words[:start], hole[tf.newaxis], words[start + size :]], axis=0)
        return {
            "inputs": tf.strings.join([label, tf.strings.reduce_join(shown, separator=" ")]),
            "targets": tf.strings.reduce_join(words[start : start + size], separator=" "),
        }

    words = split_text_to_words(dataset, text_key)
    return blank(words.filter(lambda example: tf.size(example["words"]) >= bins[0]))


def neighboring_pairs(
    dataset: tf.data.Dataset, text_key: str = "text", reuse_sentences: bool = True
) -> tf.data.Dataset:
    """`first` and `second`: sentences that follow each other on one line.

    A sentence ends with any run of `.`, `!` and `?`.

    Args:
      reuse_sentences: whether the second of one pair is also the first of the next.
    """

    def pair(example):
        lines = tf.strings.strip(tf.strings.split(example[text_key], "\n"))
        # Lines have no newline of their own, so that one can mark the ends of sentences.
        ended = tf.strings.regex_replace(lines, r"([.!?]+)", "\\1\n")
        sentences = tf.strings.split(ended, "\n")
        line, text = sentences.value_rowids(), tf.strings.strip(sentences.values)
        place = tf.range(tf.size(text, tf.int64)) - tf.gather(sentences.row_starts(), line)
        first, second = text[:-1], text[1:]
        kept = tf.logical_and(line[:-1] == line[1:], tf.logical_and(first != "", second != ""))
        if not reuse_sentences:
            kept = tf.logical_and(kept, place[:-1] % 2 == 0)
        return {"first": tf.boolean_mask(first, kept), "second": tf.boolean_mask(second, kept)}

    return dataset.map(pair, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def next_sentence_prediction(
    dataset: tf.data.Dataset,
    text_key: str = "text",
    reuse_sentences: bool = True,
    label_sentences: bool = False,
    p_neighbors: float = 0.5,
    label: str = "nsp: ",
    buffer_size: int = 50000,
) -> tf.data.Dataset:
    """Two sentences -> `next` where the second follows the first, or `not_next`.

    Pairs of neighbours are shuffled among `buffer_size` and taken by two; with a chance of 1 - `p_neighbors` the two
    exchange their second sentences.

    Args:
      label_sentences: say `sentence1: ` and `sentence2: ` before them.
      label: what the inputs begin with.
    """
    names = ("sentence1: ", "sentence2: ") if label_sentences else ("", "")
    pairs = neighboring_pairs(dataset, text_key, reuse_sentences)
    # A seed of its own, so that the same texts make the same pairs; their order hangs on the run's seed as it is.
    pairs = pairs.shuffle(buffer_size, seed=0, reshuffle_each_iteration=False).batch(2, drop_remainder=True)

    @seqio.map_over_dataset(num_seeds=1)
    def ask(two, seed):
        neighbors = tf.random.stateless_uniform([], seed) < p_neighbors
        second = tf.cond(neighbors, lambda: two["second"], lambda: two["second"][::-1])
        inputs = tf.strings.join([label, names[0], two["first"], " ", names[1], second])
        return {"inputs": tf.strings.strip(inputs), "targets": tf.fill([2], tf.where(neighbors, "next", "not_next"))}

    return ask(pairs).unbatch()
