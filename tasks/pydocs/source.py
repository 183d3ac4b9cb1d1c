"""The pydocs corpus as a seqio data source."""

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite.tasks.pydocs import builder


class PydocsSource(seqio.DataSource):
    """Records with `text`, `summary`, `body`, `library` and `name` (scalar strings; `summary` may be empty), in train,
    validation and test.

    Small enough to be held in memory (tf.data cannot read array_record files). `open_split(split)` gives the same
    records in the same order by index, for readers that seek.
    """

    def __init__(self):
        super().__init__(splits=builder.SPLITS)
        self._columns: dict[tuple[str, str], dict[str, np.ndarray]] = {}

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return len(self.open_split(split))

    def open_split(self, split: str) -> Sequence[dict[str, bytes]]:
        """The records of `split` for random access: `len()`, `[i]`, `__getitems__([i, j])`; dicts of UTF-8 bytes."""
        return builder.open_split(split)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length=None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """Dicts of scalar strings, shuffled over the whole split if asked for; shard i of n has records i, i+n, …"""
        del sequence_length, use_cached, num_epochs
        columns = self._read(split)
        order = tf.data.Dataset.range(len(columns["text"]))
        if shard_info and shard_info.num_shards > 1:
            order = order.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            order = order.shuffle(len(columns["text"]), seed=seed, reshuffle_each_iteration=True)
        tensors = {key: tf.constant(values) for key, values in columns.items()}
        return order.map(lambda i: {key: values[i] for key, values in tensors.items()})

    def _read(self, split: str) -> dict[str, np.ndarray]:
        key = (str(builder.data_dir()), split)
        if key not in self._columns:
            records = self.open_split(split)
            rows = records.__getitems__(range(len(records)))
            self._columns[key] = {name: np.array([row[name] for row in rows], object) for name in rows[0]}
        return self._columns[key]
