"""seqio tasks of text files: pairs of inputs and targets as they are, text through an unsupervised objective.

Which files, and how their lines are read, is said by `t5x_lite.text_files.TextFiles`.
"""

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite import seqio_names
from t5x_lite.data import derive_seed, permute
from t5x_lite.errors import UserError, did_you_mean, nearest
from t5x_lite.line_index import Records
from t5x_lite.tasks import postprocessors, preprocessors, unsupervised
from t5x_lite.tasks.metrics import METRICS
from t5x_lite.tasks.seekable import SeekableSource
from t5x_lite.text_files import TextFiles

_READ_AT_ONCE = 256  # lines
_ENDS_DOCUMENTS = ("full_lm",)  # objectives that put EOS where documents end, and need none where segments end


class TextFilesSource(SeekableSource):
    """The records of TextFiles: scalar strings `inputs` and `targets`, or `text`, read from the files as needed."""

    def __init__(self, files: TextFiles):
        super().__init__(splits=files.splits)
        self._files = files
        self._opened: dict[str, Records] = {}

    def open_split(self, split: str) -> Records:
        """Raises UserError for files that cannot be used (see TextFiles)."""
        if split not in self._opened:
            self._opened[split] = self._files.open_split(split)
        return self._opened[split]

    def _dataset(self, split: str, shuffle: bool, seed: int | None, shard: seqio.ShardInfo) -> tf.data.Dataset:
        records, shards = self.open_split(split), shard.num_shards

        def read():
            for start in range(shard.index, len(records), shards * _READ_AT_ONCE):
                places = np.arange(start, min(len(records), start + shards * _READ_AT_ONCE), shards)
                if shuffle:
                    places = permute(places, len(records), derive_seed(seed, split))
                yield from records.__getitems__(places.tolist())

        keys = ("inputs", "targets") if self._files.supervised else ("text",)
        signature = {key: tf.TensorSpec((), tf.string) for key in keys}
        return tf.data.Dataset.from_generator(read, output_signature=signature)


@seqio_names.makes_text_tasks
def text_task(files: TextFiles, name: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """A task of `files`, under `name`, not registered.

    Raises:
      UserError: an unknown metric or objective.
    """
    source = TextFilesSource(files)
    if not files.supervised:
        end = [] if files.objective in _ENDS_DOCUMENTS else [seqio.preprocessors.append_eos_after_trim]
        return seqio.Task(
            name,
            source=source,
            preprocessors=unsupervised.chain(_objective(files.objective), *end),
            output_features=unsupervised.features(vocabulary),
            metric_fns=[],
        )
    feature = seqio.Feature(vocabulary=vocabulary, add_eos=True)
    return seqio.Task(
        name,
        source=source,
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=postprocessors.strip,
        metric_fns=[_metric(metric) for metric in files.metrics],
    )


def _metric(name: str):
    if name not in METRICS:
        raise UserError(
            f"TextFiles.metrics names {name!r}{did_you_mean(nearest(name, METRICS))}; there are {', '.join(METRICS)}"
        )
    return METRICS[name]


def _objective(name: str):
    objective = getattr(preprocessors, name, None)
    if not callable(objective) or name.startswith("_"):
        raise UserError(
            f"TextFiles.objective = {name!r} is no function of t5x_lite.tasks.preprocessors, such as span_corruption"
        )
    return objective
