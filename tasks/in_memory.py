"""A seqio data source whose records are held in memory."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite import seqio_sources
from t5x_lite.tasks.seekable import SeekableSource


class InMemorySource(SeekableSource):
    """The records of `open_split`, all of them at once."""

    def __init__(self, splits: Sequence[str]):
        super().__init__(splits=splits)
        self._columns: dict[Hashable, dict[str, Any]] = {}

    def cache_key(self, split: str) -> Hashable:
        """What the records depend on; where it stays the same they are read once."""
        return split

    def _dataset(self, split: str, shuffle: bool, seed: int | None, shard: seqio.ShardInfo) -> tf.data.Dataset:
        columns = self.columns(split)
        size = len(self.open_split(split))
        order = tf.data.Dataset.range(size)
        if shard.num_shards > 1:
            order = order.shard(shard.num_shards, shard.index)
        if shuffle:
            order = order.shuffle(size, seed=seed, reshuffle_each_iteration=True)
        tensors = tf.nest.map_structure(lambda x: tf.constant(x) if isinstance(x, np.ndarray) else x, columns)
        return order.map(lambda i: tf.nest.map_structure(lambda x: x[i], tensors))

    def columns(self, split: str) -> dict[str, Any]:
        """{field: [n]} of all records, as `seqio_sources.columns` makes them."""
        key = self.cache_key(split)
        if key not in self._columns:
            records = self.open_split(split)
            self._columns[key] = seqio_sources.columns(seqio_sources.read(records, range(len(records))))
        return self._columns[key]
