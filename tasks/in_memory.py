"""A seqio data source whose records are held in memory: tf.data and readers that seek see the same ones."""

import abc
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite import seqio_sources


class InMemorySource(seqio.DataSource):
    """Gives the records of `open_split` to tf.data, too."""

    def __init__(self, splits: Sequence[str]):
        super().__init__(splits=splits)
        self._columns: dict[Hashable, dict[str, Any]] = {}

    @abc.abstractmethod
    def open_split(self, split: str) -> Sequence[Mapping[str, object]]:
        """The records of `split` for random access: `len()`, `[i]`; scalars and UTF-8 bytes by field."""

    def cache_key(self, split: str) -> Hashable:
        """What the records depend on; where it stays the same they are read once."""
        return split

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return len(self.open_split(split))

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
        """Records, shuffled over the whole split if asked for; shard i of n has records i, i+n, …"""
        del sequence_length, use_cached, num_epochs
        columns = self.columns(split)
        size = len(self.open_split(split))
        order = tf.data.Dataset.range(size)
        if shard_info and shard_info.num_shards > 1:
            order = order.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            order = order.shuffle(size, seed=seed, reshuffle_each_iteration=True)
        tensors = tf.nest.map_structure(lambda x: tf.constant(x) if isinstance(x, np.ndarray) else x, columns)
        return order.map(lambda i: tf.nest.map_structure(lambda x: x[i], tensors))

    def columns(self, split: str) -> dict[str, Any]:
        """{field: [n]} of all records, as `seqio_sources.columns` makes them."""
        key = self.cache_key(split)
        if key not in self._columns:
            records = self.open_split(split)
            rows = records.__getitems__(range(len(records))) if hasattr(records, "__getitems__") else records
            self._columns[key] = seqio_sources.columns(rows)
        return self._columns[key]
