"""The tasks on the pydocs corpus. Registered here; the corpus is read (and built) when one of them is used."""

import seqio
import tensorflow as tf

from t5x_lite.tasks import postprocessors, preprocessors, unsupervised
from t5x_lite.tasks.pydocs import metrics, source, vocabulary


def summarize(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`summarize: ` + the body -> the first sentence; documents without one to ask for are left out."""

    def text_to_text(example):
        return {
            "inputs": tf.strings.join(["summarize: ", example["body"]]),
            "targets": example["summary"],
            "name": example["name"],
        }

    return dataset.filter(lambda example: example["summary"] != "").map(
        text_to_text, num_parallel_calls=tf.data.AUTOTUNE
    )


def library(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`library: ` + the whole text -> the library's name. Texts that name their library are kept as they are."""

    def text_to_text(example):
        return {
            "inputs": tf.strings.join(["library: ", example["text"]]),
            "targets": example["library"],
            "name": example["name"],
        }

    return dataset.map(text_to_text, num_parallel_calls=tf.data.AUTOTUNE)


_vocabulary = vocabulary.PydocsVocabulary()
_features = {
    "inputs": seqio.Feature(vocabulary=_vocabulary, add_eos=True),
    "targets": seqio.Feature(vocabulary=_vocabulary, add_eos=True),
}
_source = source.PydocsSource()


for _name, _objective in (
    ("pydocs_span_corruption", preprocessors.span_corruption),
    ("pydocs_unsupervised", preprocessors.unsupervised),  # whatever gin says: --gin_file=objectives/NAME.gin
):
    unsupervised.add_task(
        _name, _source, unsupervised.features(_vocabulary), _objective, seqio.preprocessors.append_eos_after_trim
    )

for _name, _text_to_text, _metric in (
    ("pydocs_summarize", summarize, metrics.rouge),
    ("pydocs_library", library, metrics.accuracy),
):
    seqio.TaskRegistry.add(
        _name,
        source=_source,
        preprocessors=[
            _text_to_text,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=_features,
        postprocess_fn=postprocessors.strip,
        metric_fns=[_metric],
    )

# By size the two would be about equal. One to three, on any corpus: a class is learnt much sooner than a sentence.
seqio.MixtureRegistry.add("pydocs_library_and_summarize", [("pydocs_library", 1.0), ("pydocs_summarize", 3.0)])
