"""C4 tasks under their T5 names. Nothing is read before a task is used; the vocabulary and C4 itself are not shipped.

C4 is prepared by tensorflow-datasets (https://www.tensorflow.org/datasets/catalog/c4) and found under `TFDS_DATA_DIR`.
"""

import functools

import seqio

from t5x_lite.tasks import objectives

# T5's vocabulary, in a public bucket: 32,000 pieces with the 100 sentinels already above them, hence no `extra_ids`
# below. Another one is put in its place with `task.replace(output_features=...)` or the gin binding of the run.
VOCABULARY_PATH = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
# T5's own name says 2.2.0; tensorflow-datasets has fixed its C4 since, and still offers the older one by name.
TFDS_NAME = "c4/en:3.*.*"


def vocabulary() -> seqio.SentencePieceVocabulary:
    """T5's 32,100 ids; the file is opened at first use."""
    return seqio.SentencePieceVocabulary(VOCABULARY_PATH)


def features() -> dict[str, seqio.Feature]:
    """`inputs` and `targets`, both with EOS, in T5's vocabulary."""
    shared = vocabulary()
    return {
        "inputs": seqio.Feature(vocabulary=shared, add_eos=True),
        "targets": seqio.Feature(vocabulary=shared, add_eos=True),
    }


seqio.TaskRegistry.add(
    "c4_v220_span_corruption",
    source=seqio.TfdsDataSource(tfds_name=TFDS_NAME, splits=("train", "validation")),
    preprocessors=[
        functools.partial(seqio.preprocessors.rekey, key_map={"inputs": None, "targets": "text"}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        objectives.span_corruption,
        seqio.preprocessors.append_eos_after_trim,
    ],
    output_features=features(),
    metric_fns=[],
)
