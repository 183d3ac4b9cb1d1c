"""Raw examples to `inputs` and `targets` as text: formats that serve many data sets.

Names, signatures and results are those of `t5.data.preprocessors`, byte for byte; every function takes a
`tf.data.Dataset` first. Formats of one data set or benchmark are in `glue_preprocessors`, `pronoun_preprocessors` and
`question_preprocessors`.

Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 2.4 and appendix D.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import babel
import seqio
import tensorflow as tf

Features = Mapping[str, tf.Tensor]


# Translation and summaries -----------------------------------------------------------------------------------------


def translate(dataset: tf.data.Dataset, source_language: str, target_language: str) -> tf.data.Dataset:
    """`translate English to German: ` + the source -> the target.

    Args:
      source_language, target_language: keys of the example that begin with a language code ("en", "zh-cn"); only its
        first two letters choose the name.

    Raises:
      babel.UnknownLocaleError: no language has that code.
    """
    source, target = (babel.Locale(code[:2]).english_name for code in (source_language, target_language))

    def to_text(x):
        return {
            "inputs": tf.strings.join([f"translate {source} to {target}: ", x[source_language]]),
            "targets": x[target_language],
        }

    return dataset.map(to_text, num_parallel_calls=tf.data.AUTOTUNE)


def multi_translate(dataset: tf.data.Dataset, source_language: str, target_language: str) -> tf.data.Dataset:
    """`translate` on examples with `translations`: `language` and `translation`, [n] each; those without both go."""
    languages = (source_language, target_language)

    def has_both(x):
        present = [tf.reduce_any(x["translations"]["language"] == language) for language in languages]
        return tf.reduce_all(present)

    def pair(x):
        found = [tf.argmax(x["translations"]["language"] == language) for language in languages]
        return {key: x["translations"]["translation"][i] for key, i in zip(languages, found)}

    pairs = dataset.filter(has_both).map(pair, num_parallel_calls=tf.data.AUTOTUNE)
    return translate(pairs, source_language, target_language)


@seqio.map_over_dataset
def summarize(x: Features, article_key: str, summary_key: str) -> Features:
    """`summarize: ` + the article -> the summary."""
    return {"inputs": tf.strings.join(["summarize:", x[article_key]], separator=" "), "targets": x[summary_key]}


# Tables ------------------------------------------------------------------------------------------------------------


@seqio.map_over_dataset
def parse_tsv(
    line: tf.Tensor,
    field_names: Sequence[str] | None = None,
    field_delim: str = "\t",
    field_columns: Sequence[int] | None = None,
) -> Features:
    """A line of text to its named fields. Quotation marks are characters like others.

    Args:
      field_names: `inputs` and `targets` by default.
      field_columns: where each stands, from 0; one after the other by default.
    """
    names = field_names or ("inputs", "targets")
    fields = tf.io.decode_csv(
        line,
        record_defaults=[""] * len(names),
        field_delim=field_delim,
        use_quote_delim=False,
        select_cols=list(field_columns or range(len(names))),
    )
    return dict(zip(names, fields))


@seqio.map_over_dataset
def preprocess_tsv(
    line: tf.Tensor,
    field_delim: str = "\t",
    num_fields: int = 2,
    inputs_format: str = "{0}",
    targets_format: str = "{1}",
    field_names: Sequence[str] | None = None,
    use_quote_delim: bool = False,
) -> Features:
    """A line of text to `inputs` and `targets`, each a format filled with the line's fields.

    Args:
      num_fields: in a line; `field_names` says so as well.
      inputs_format, targets_format: with `{0}`, or `{name}` where `field_names` are given. Other braces stay.
      use_quote_delim: whether a field may stand in double quotation marks (RFC 4180).
    """
    names = list(field_names or map(str, range(num_fields)))
    values = tf.io.decode_csv(
        line, record_defaults=[""] * len(names), field_delim=field_delim, use_quote_delim=use_quote_delim
    )
    fields = {f"{{{name}}}": value for name, value in zip(names, values)}
    places = re.compile("(" + "|".join(map(re.escape, fields)) + ")")

    def fill(text: str) -> tf.Tensor:
        return tf.strings.join([fields.get(part, part) for part in places.split(text)])

    return {"inputs": fill(inputs_format), "targets": fill(targets_format)}


# Rank classification -----------------------------------------------------------------------------------------------


def rank_classification(
    ds: tf.data.Dataset,
    inputs_fn: Callable[[Features], tf.Tensor],
    targets_fn: Callable[[Features], tf.Tensor],
    is_correct_fn: Callable[[Features], tf.Tensor],
    weight_fn: Callable[[Features], tf.Tensor] | None = None,
    mode: str = "eval",
    passthrough_feature_keys: Sequence[str] | None = None,
) -> tf.data.Dataset:
    """One example for each answer that could be given, to be scored and ranked by `metrics.rank_classification`.

    An example has `idx` (int32 [2]: its number, the answer's), `inputs`, `targets`, `is_correct` and, if asked for,
    `weight`.

    Args:
      inputs_fn, targets_fn, is_correct_fn: the [n] inputs, targets and truths of one raw example.
      weight_fn: its weight, a scalar.
      mode: "eval" for all n, "train" for the right ones, "fewshot_eval" for all n together in one batch.
      passthrough_feature_keys: raw features repeated for each answer.

    Raises:
      ValueError: an unknown mode, or a feature passed through under a name that is taken.
    """
    if mode not in ("train", "eval", "fewshot_eval"):
        raise ValueError(f"rank_classification: mode is 'train', 'eval' or 'fewshot_eval', not {mode!r}")

    def expand(number, x):
        inputs, targets, is_correct = inputs_fn(x), targets_fn(x), tf.cast(is_correct_fn(x), tf.bool)
        n = tf.size(is_correct)
        tf.debugging.assert_equal(
            [tf.size(inputs), tf.size(targets)],
            [n, n],
            "inputs_fn, targets_fn and is_correct_fn must give as many values as each other",
        )
        out = {
            "idx": tf.stack([tf.fill([n], tf.cast(number, tf.int32)), tf.range(n)], axis=1),
            "inputs": inputs,
            "targets": targets,
            "is_correct": is_correct,
        }
        if weight_fn is not None:
            out["weight"] = tf.fill([n], tf.cast(weight_fn(x), tf.float32))
        for key in passthrough_feature_keys or ():
            if key in out:
                raise ValueError(f"rank_classification: {key!r} is taken; rename the feature to pass through")
            out[key] = tf.repeat(x[key][tf.newaxis], n, axis=0)
        return out

    ds = ds.enumerate().map(expand, num_parallel_calls=tf.data.AUTOTUNE)
    if mode != "fewshot_eval":
        ds = ds.unbatch()
    return ds.filter(lambda x: x["is_correct"]) if mode == "train" else ds


def rank_classification_formatter(
    ds: tf.data.Dataset,
    inputs_formats: str | Sequence[str],
    targets_formats: str | Sequence[str],
    mode: str = "eval",
    label_key: str = "label",
    weight_key: str | None = None,
) -> tf.data.Dataset:
    """`rank_classification` with answers made from formats such as "{premise} Is it {choices/first}?".

    Args:
      inputs_formats, targets_formats: one for each class, or one for all; at least one of the two is a list. A feature
        in a feature is written `{outer/inner}`.
      label_key: the number of the right class, or [k] numbers of several.
      weight_key: a float feature.

    Raises:
      ValueError: no list, lists of different lengths, or a format that names something that is no text.
    """
    lists = [formats for formats in (inputs_formats, targets_formats) if not isinstance(formats, str)]
    if not lists or len({len(formats) for formats in lists}) > 1:
        raise ValueError(
            "rank_classification_formatter: inputs_formats or targets_formats is a list with one format "
            f"for each class, and both have one length; got {inputs_formats!r} and {targets_formats!r}"
        )
    classes = len(lists[0])

    def fill(x, template):
        for key in set(re.findall(r"{(\S+)}", template)):
            value = x
            for name in key.split("/"):
                value = value[name]
            if not (isinstance(value, tf.Tensor) and value.dtype == tf.string):
                raise ValueError(f"rank_classification_formatter: {{{key}}} of {template!r} is no text")
            template = tf.strings.regex_replace(template, "{" + key + "}", value)
        return template

    def filled(formats):
        each = [formats] * classes if isinstance(formats, str) else formats
        return lambda x: tf.stack([fill(x, template) for template in each])

    def is_correct(x):
        right = tf.one_hot(x[label_key], classes, on_value=True, off_value=False)
        return tf.reduce_any(right, axis=0) if right.shape.rank == 2 else right

    return rank_classification(
        ds,
        filled(inputs_formats),
        filled(targets_formats),
        is_correct,
        weight_fn=None if weight_key is None else lambda x: x[weight_key],
        mode=mode,
    )
