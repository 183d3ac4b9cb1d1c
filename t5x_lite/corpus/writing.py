"""Pages as a tensorflow-datasets data set of ArrayRecord files, `<folder>/<name>/<config>/<version>`.

Shards are written without TensorFlow; the metadata are written once, at the end.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from t5x_lite.corpus.rules import Page

FEATURES = ("text", "url", "content-type", "content-length", "timestamp")
_SUFFIX = "array_record"


def shard_name(name: str, split: str, shard: int, shards: int) -> str:
    """What tensorflow-datasets calls a shard's file."""
    return f"{name}-{split}.{_SUFFIX}-{shard:05d}-of-{shards:05d}"


def write_shard(path: str, pages: Iterable[Page]) -> tuple[int, int]:
    """Writes pages in their order; returns how many, and their bytes as records. The same pages give the same file."""
    from array_record.python.array_record_module import ArrayRecordWriter

    count = total = 0
    with tempfile.TemporaryDirectory() as own:  # ArrayRecord writes to a disk; the shard may go to gs:// or s3://
        file = os.path.join(own, "shard")
        writer = ArrayRecordWriter(file, "group_size:1")
        try:
            for page in pages:
                record = _example(page)
                writer.write(record)
                count += 1
                total += len(record)
        finally:
            writer.close()
        epath.Path(file).copy(path, overwrite=True)
    return count, total


def _example(page: Page) -> bytes:
    """A serialized tf.train.Example; `deterministic` keeps the order of its map."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in zip(FEATURES, (page.text, page.url, page.content_type, page.content_length, page.timestamp)):
        example.features.feature[name].bytes_list.value.append(value.encode("utf-8"))
    return example.SerializeToString(deterministic=True)


def write_metadata(
    folder: str, name: str, version: str, splits: Mapping[str, Sequence[tuple[int, int]]], description: str
) -> None:
    """Writes what tensorflow-datasets reads the shards by.

    Args:
      folder: that has the shards, `…/<name>/<config>/<version>` in the end.
      splits: {split: (examples, bytes) of each shard}.
    """
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(data_dir=epath.Path(folder), dataset_name=name, filetype_suffix=_SUFFIX)
    features = tfds.features.FeaturesDict({feature: tfds.features.Text() for feature in FEATURES})
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[count for count, _ in shards],
                num_bytes=sum(size for _, size in shards),
                filename_template=template.replace(split=split),
            )
            for split, shards in splits.items()
        ],
        version=version,
        filename_template=template,
        description=description,
        check_data=False,
    )
